"""Which names a pickle may use. Everything else is refused."""

from __future__ import annotations

_STORAGES = (
    *("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"),
    *("ComplexDouble", "ComplexFloat", "QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4"),
)

_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex32", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
    *("qint8", "quint8", "qint32", "quint4x2", "quint2x4"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)

_QUANTIZATION = (
    *("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric"),
    "per_channel_affine_float_qparams",
)

CALLABLE = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",
        "builtins.set",
        "builtins.complex",
        "_codecs.encode",
        "torch.Size",
        "torch.device",
        "torch.serialization._get_layout",
        "torch.nn.parameter.Parameter",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_nested_tensor",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    }
)
"""Functions and classes that build tensors and plain containers; they run no code of the file's choosing."""

CONSTANT = frozenset(
    {
        "torch.Tensor",
        "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage",
        *(f"torch.{name}Storage" for name in _STORAGES),
        *(f"torch.{name}" for name in (*_DTYPES, *_QUANTIZATION)),
    }
)
"""Types and values that may be named, but not called."""

ALLOWED = CALLABLE | CONSTANT

BUILDABLE = frozenset({"collections.OrderedDict", "torch.nn.parameter.Parameter"})
"""Results whose state a file may set; the attributes of an OrderedDict hold a state dict's metadata."""

_HARMFUL_ROOTS = frozenset(
    {
        *("os", "posix", "nt", "ntpath", "posixpath", "subprocess", "sys", "pty", "commands", "popen2", "signal"),
        *("builtins", "__builtin__", "__builtins__", "operator", "_operator", "functools", "_functools", "itertools"),
        *("importlib", "imp", "pkgutil", "runpy", "zipimport", "code", "codeop", "types", "inspect", "ctypes"),
        *("_ctypes", "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "copyreg"),
        *("copy_reg", "pip", "setuptools", "distutils", "ensurepip", "venv", "shutil", "pathlib", "tempfile", "glob"),
        *("io", "_io", "socket", "_socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "aiohttp"),
        *("httplib", "telnetlib", "xmlrpc", "socketserver", "asyncio", "multiprocessing", "threading", "_thread"),
        *("concurrent", "webbrowser", "antigravity", "platform", "timeit", "cProfile", "profile", "pdb", "bdb"),
        *("trace", "doctest", "unittest", "test", "idlelib", "lib2to3", "logging", "sqlite3", "pydoc", "site"),
        *("atexit", "gc", "weakref", "readline", "cmd", "turtle", "nose", "pytest", "_pytest", "py", "IPython"),
    }
)

_HARMFUL_PREFIXES = (
    *("numpy.f2py", "numpy.testing", "numpy.distutils", "numpy.load", "torch.load", "torch.utils", "torch.hub"),
    *("torch.jit", "torch.fx", "torch.package", "torch.ops", "torch.classes", "torch.testing", "torch.distributed"),
    *("torch.multiprocessing", "torch._dynamo", "torch._inductor", "torch.serialization", "torch._utils_internal"),
    "torch.storage._load_from_bytes",
)


def is_harmful(name: str) -> bool:
    """Whether a refused name is known to run code, import modules, or reach files or the network."""
    return name.partition(".")[0] in _HARMFUL_ROOTS or name.startswith(_HARMFUL_PREFIXES)
