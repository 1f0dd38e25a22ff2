"""The protobuf messages of CRIU that we read or write, by field number.

Only the fields we touch are declared: protobuf keeps the others as it found them. Numbers are from
CRIU's images/rpc.proto (MIT), core.proto, fdinfo.proto, mm.proto, pagemap.proto,
regfile.proto and vma.proto, of 4.2.
Messages we only carry along are declared as bytes, which have the same encoding.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TYPES = descriptor_pb2.FieldDescriptorProto

# enum criu_req_type
DUMP = 1
RESTORE = 2

# enum criu_network_lock_method, criu_cg_mode
NETWORK_LOCK_SKIP = 3
CGROUPS_IGNORE = 0

# criu/include/pagemap.h, flags of a pagemap_entry
PE_LAZY = 2

# enum fd_types
FD_REG = 1
FD_INETSK = 4

_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Request": {"type": (1, "int32"), "opts": (2, "Options"), "keep_open": (4, "bool")},
    "Options": {
        "images_dir_fd": (1, "int32"),
        "pid": (2, "int32"),
        "leave_running": (3, "bool"),
        "ext_unix_sk": (4, "bool"),
        "shell_job": (7, "bool"),
        "file_locks": (8, "bool"),
        "log_level": (9, "int32"),
        "log_file": (10, "string"),
        "link_remap": (18, "bool"),
        "inherit_fd": (27, "InheritFd*"),
        "manage_cgroups_mode": (34, "int32"),
        "ghost_limit": (35, "uint32"),
        "lazy_pages": (48, "bool"),
        "config_file": (51, "string"),
        "tcp_close": (52, "bool"),
        "network_lock": (64, "int32"),
        "leave_stopped": (69, "bool"),
    },
    "InheritFd": {"key": (1, "string"), "fd": (2, "int32")},
    "Response": {
        "type": (1, "int32"),
        "success": (2, "bool"),
        "restore": (4, "RestoreResponse"),
        "cr_errno": (7, "int32"),
        "cr_errmsg": (9, "string"),
    },
    "RestoreResponse": {"pid": (1, "int32")},
    "FdInfo": {"id": (1, "uint32"), "flags": (2, "uint32"), "type": (3, "int32"),
               "fd": (4, "uint32")},
    "File": {"type": (1, "int32"), "id": (2, "uint32"), "reg": (3, "RegFile"),
             "isk": (4, "InetSocket")},
    "Ids": {"files_id": (2, "uint32")},
    "InetSocket": {"ino": (2, "uint32"), "flags": (9, "uint32"), "fown": (13, "bytes")},
    "Mm": {"vmas": (14, "Vma*")},
    "Vma": {"start": (1, "uint64"), "end": (2, "uint64"), "flags": (6, "uint32"),
            "status": (7, "uint32")},
    "PagemapEntry": {"vaddr": (1, "uint64"), "compat_nr_pages": (2, "uint32"),
                     "flags": (4, "uint32"), "nr_pages": (5, "uint64")},
    "RegFile": {"id": (1, "uint32"), "flags": (2, "uint32"), "pos": (3, "uint64"),
                "fown": (5, "bytes"), "name": (6, "string")},
}  # fmt: skip


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="streamferry_criu.proto", package="streamferry.criu", syntax="proto2"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            field = message.field.add(name=field_name, number=number)
            repeated = kind.endswith("*")
            kind = kind.rstrip("*")
            field.label = _TYPES.LABEL_REPEATED if repeated else _TYPES.LABEL_OPTIONAL
            if kind in _MESSAGES:
                field.type = _TYPES.TYPE_MESSAGE
                field.type_name = f".streamferry.criu.{kind}"
            else:
                field.type = getattr(_TYPES, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    if hasattr(message_factory, "GetMessageClass"):  # protobuf 4.22 and later
        make = message_factory.GetMessageClass
    else:
        make = message_factory.MessageFactory(pool).GetPrototype
    return {
        name: make(pool.FindMessageTypeByName(f"streamferry.criu.{name}")) for name in _MESSAGES
    }


_classes = _build()
Request: Any = _classes["Request"]
Response: Any = _classes["Response"]
File: Any = _classes["File"]
Ids: Any = _classes["Ids"]
FdInfo: Any = _classes["FdInfo"]
PagemapEntry: Any = _classes["PagemapEntry"]
Mm: Any = _classes["Mm"]
