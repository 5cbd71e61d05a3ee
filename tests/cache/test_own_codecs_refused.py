"""Codecs of a user's own that aren't trusted, aren't there or do wrong, and manifests that were changed."""

import sys

import pytest
from cache_helpers import contents, rewrite
from own_codec_helpers import make

from ensdistill.cache import (
    CacheCorrupt,
    CacheError,
    CacheUntrusted,
    Codec,
    TargetCache,
)
from ensdistill.cache.codecs import codec_of
from ensdistill.cache.codecs.names import parsed_name
from ensdistill.cache.remote import download, upload


def test_nothing_is_imported_unless_trusted(own_codecs_module, tmp_path):
    make(tmp_path / "c", "Nibbles", None)
    del sys.modules[own_codecs_module]
    for trusted in ((), ("own_codecs",), ("own_codecs.HalfLogProbs",), ("own_codecs.Nibbles(depth=12.0)",)):
        with pytest.raises(
            CacheUntrusted,
            match=r"the codec is the class own_codecs\.Nibbles, .*trusted=\('own_codecs\.Nibbles',\)",
        ):
            TargetCache.open(tmp_path / "c", trusted=trusted)
    with pytest.raises(TypeError, match="trusted: expected a sequence of class paths; got the string"):
        TargetCache.open(tmp_path / "c", trusted="own_codecs.Nibbles")
    url = f"memory://{tmp_path}"
    upload(tmp_path / "c", url)  # copying takes no codec
    download(url, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(tmp_path / "c")
    assert own_codecs_module not in sys.modules
    assert len(TargetCache.open(url, local=tmp_path / "copy", trusted=("own_codecs.Nibbles",))) == 230
    assert own_codecs_module in sys.modules


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"codec": "os.system"}, CacheUntrusted, "the class os.system, which is not part"),
        ({"codec": "own_codecs.NoCodec"}, CacheError, r"own_codecs\.NoCodec: expected a class derived from"),
        ({"codec": "own_codecs.Missing"}, CacheError, r"own_codecs\.Missing cannot be imported"),
        (
            {"codec": "no_such_module.Codec"},
            CacheError,
            r"no_such_module\.Codec cannot be imported .*PYTHONPATH",
        ),
        ({"codec": "own_codecs.Nibbles(bits=3)"}, CacheError, "does not take the settings {'bits': 3}"),
        (
            {"codec": "own_codecs.Nibbles(depth=__import__('os'))"},
            CacheCorrupt,
            "codec: expected one of .* or a class path",
        ),
        ({"codec": "own_codecs.Nibbles(12.0)"}, CacheCorrupt, "codec: expected one of"),
        ({"codec": "own_codecs.Nibbles" * 100}, CacheCorrupt, "codec: expected one of"),
        (
            {"codec": "own_codecs.HalfLogProbs"},
            CacheCorrupt,
            r"temperature: expected a number, because own_codecs\.HalfLogProbs holds",
        ),
        ({"codec": "fp32"}, CacheCorrupt, "record: expected the layout of its codec"),
        ({"format_version": 3}, CacheCorrupt, "codec: expected one of uint8.*, in format_version 3"),
        ({"record": {"bytes": 24, "fields": []}}, CacheCorrupt, "record: expected the layout of its codec"),
        ({"record": {"bytes": "24"}}, CacheCorrupt, "record: expected an object with a positive number"),
    ],
)
def test_a_manifest_that_was_changed(own_codecs_module, tmp_path, fields, error, message):
    make(tmp_path / "c", "Nibbles", None)
    rewrite(tmp_path / "c", lambda manifest: manifest.update(fields))
    trusted = tuple(f"own_codecs.{name}" for name in ("Nibbles", "NoCodec", "Missing", "HalfLogProbs"))
    with pytest.raises(error, match=message):
        TargetCache.open(tmp_path / "c", trusted=(*trusted, "no_such_module.Codec"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", r"field 'z': expected a shape that begins with 3, the number of members.*mixture_only"),
        ("scalar", "expected a shape that begins with 3"),
        ("negative", "and a shape of positive integers"),
        ("big endian", "a little-endian dtype"),
        ("object", "a little-endian dtype"),
        ("nonsense", "a little-endian dtype"),
        ("reserved", "another name than 'input_hash'"),
        (
            "float64",
            r"expected encode to return the fields .* z float32 \(50, 3, 10\); got z float64 \(50, 3, 10\)",
        ),
        ("missing", "got none"),
        ("more", r"got z float32 \(50, 3, 10\), y float32"),
        ("kl", r"expected a KL \[3, 50\]; got \[3\]"),
        (
            "decoded shape",
            r"expected decode to return \[records, members, classes\] = \[50, 3, 10\]; got \[50, 10\]",
        ),
        ("masked", "expected stored rows at a finite KL from the given ones; uid 0 of 'a' has inf"),
        ("nan", "expected stored rows at a finite KL .* has nan"),
    ],
)
def test_the_fault_of_a_wrong_codec_is_named(own_codecs_module, tmp_path, fault, message):
    with pytest.raises(ValueError, match=message) as raised:
        make(tmp_path / "c", f"Wrong(fault={fault!r})", None)
    assert f"own_codecs.Wrong(fault={fault!r})" in str(raised.value)
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_a_codec_that_no_reader_could_build_again_is_refused(own_codecs_module):
    import own_codecs

    def fails(codec, message, error=ValueError):
        with pytest.raises(error, match=message):
            codec_of(codec)

    fails(
        own_codecs.local(), r"local\.<locals>\.Local, which another process could not import: move the class"
    )
    main = type("Main", (own_codecs.HalfLogProbs,), {"__module__": "__main__"})
    fails(main(), r"__main__\.Main, which another process could not import")
    fails(
        own_codecs.Argument(3),
        "takes arguments, without which a cache could not build it again: make it a frozen dataclass",
    )
    fails(own_codecs.Renamed(), "don't override name")
    fails(
        own_codecs.Wrong(fault=["list"]),
        r"expected settings that are finite numbers.*fault=\['list'\]",
        TypeError,
    )
    fails(own_codecs.Wrong(fault=float("nan")), "expected settings that are finite", TypeError)
    fails("own_codecs.Nibbles(12)", "expected one of uint8.*or the import path")
    fails("own_codecs.NoCodec", "expected a class derived from ensdistill.cache.Codec")
    fails("fp17", "expected one of uint8")
    fails(7, "expected one of uint8.*; got 7")
    fails(own_codecs.Nibbles, "or an instance of one; got <class 'own_codecs.Nibbles'>")
    # A class derived from one of the package's own is not that one.
    assert codec_of(own_codecs.Uint8()).name == "own_codecs.Uint8"
    assert isinstance(codec_of("own_codecs.Nibbles(depth=3.0)"), Codec)
    assert parsed_name("own_codecs.Nibbles(depth=-3)") == ("own_codecs.Nibbles", {"depth": -3})
