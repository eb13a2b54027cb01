"""Tests of `editors.artifacts.easyedit.inert_pickle`."""

from __future__ import annotations

import io
import pickle
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from editors.artifacts.easyedit.inert_pickle import Inert, PickledTensor, TorchArchive, interpret
from editors.common.errors import ArtifactError
from tests.bombs import Bomb


def saved(path: Path, value: Any) -> TorchArchive:
    torch.save(value, path)
    return TorchArchive(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool"])
def test_tensors_are_read_exactly(dtype: str, tmp_path: Path) -> None:
    base = (torch.randn(6, 5) * 100).to(getattr(torch, dtype))
    given = {"whole": base, "part": base[2:4, 1:], "turned": base.T, "none": base[:0], "number": base[0, 0]}
    archive = saved(tmp_path / "a.pt", given)
    for name, tensor in given.items():
        assert torch.equal(archive.tensor(archive.content[name]), tensor)


def test_plain_values_parameters_and_ordered_dicts(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 3).state_dict()
    given = {"state": state, "p": torch.nn.Parameter(torch.ones(2)), "x": [1, -1.5, "é", None, True, (1, 2, 3, 4)]}
    content = saved(tmp_path / "a.pt", given).content
    assert list(content["state"]) == ["weight", "bias"]
    assert isinstance(content["p"], PickledTensor)
    assert content["x"] == given["x"]


def test_objects_become_stand_ins(tmp_path: Path) -> None:
    """As in EasyEdit's own archives, which hold the configuration object of the base model."""
    content = saved(tmp_path / "a.pt", {"config": LlamaConfig(), "weight": torch.ones(2)}).content
    assert content["config"] == Inert("transformers.models.llama.configuration_llama.LlamaConfig", called=True)
    assert isinstance(content["weight"], PickledTensor)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_bomb_does_not_go_off(protocol: int, tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "went_off")
    torch.save({"model": bomb, "list": [bomb]}, tmp_path / "a.pt", pickle_protocol=protocol)
    TorchArchive(tmp_path / "a.pt")
    assert not bomb.went_off
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert bomb.went_off


def test_bare_pickle_is_refused(tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "went_off")
    (tmp_path / "a.pt").write_bytes(pickle.dumps(bomb))
    with pytest.raises(ArtifactError, match="cannot be read as a file of"):
        TorchArchive(tmp_path / "a.pt")
    assert not bomb.went_off


# --- pickles that no library writes ----------------------------------------------------------------------------------


def archive_of(path: Path, data: bytes, records: dict[str, bytes] | None = None, compressed: bool = False) -> Path:
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("a/data.pkl", data)
        for name, content in (records or {}).items():
            file.writestr(name, content)
    return path


DEEP = b"\x80\x02" + b")" + b"\x85" * 200_000  # a tuple in a tuple in a tuple …
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "malformed"),
    "no end": (b"\x80\x02}", "malformed"),
    "nothing on the stack": (b"\x80\x02.", "malformed"),
    "unknown place": (b"\x80\x02h\x07.", "malformed"),
    "no mark": (b"\x80\x02t.", "malformed"),
    "tuple of nothing": (b"\x80\x02\x87.", "stack is empty"),
    "odd items": (b"\x80\x02}(K\x01u.", "malformed"),
    "other instruction": (b"\x80\x02(cos\nsystem\no.", "uses pickle instruction OBJ"),
    "instance": (b"\x80\x02(ios\nsystem\n.", "uses pickle instruction INST"),
    "extension": (b"\x80\x02\x82\x01.", "uses pickle instruction EXT1"),
    "outside reference": (b"\x80\x02X\x01\x00\x00\x00xQ.", "refers to something outside itself"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_malformed_pickle_is_refused(kind: str, tmp_path: Path) -> None:
    data, message = BROKEN[kind]
    with pytest.raises(ArtifactError, match=message):
        TorchArchive(archive_of(tmp_path / "a.pt", data))


def test_deep_nesting_is_harmless_even_as_a_key() -> None:
    assert interpret(b"\x80\x02}" + DEEP[2:] + b"K\x01s.") == {}
    assert isinstance(interpret(DEEP + b"."), tuple)
    assert isinstance(interpret(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."), list)


DENSE: dict[str, bytes] = {
    "nested tuples": b")" + b"\x85" * 20_000_000,
    "nested lists": b"]" * 2_000_000 + b"a" * 1_999_999,
    "marks": b"(" * 20_000_000,
    "numbers": b"K\x01" * 10_000_000,
}


@pytest.mark.parametrize("kind", DENSE)
def test_a_description_of_millions_of_instructions_is_refused_soon(kind: str, tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.pt", b"\x80\x02" + DENSE[kind] + b".")
    start = time.process_time()
    with pytest.raises(ArtifactError, match="describes its content in more than 1,000,000 instructions"):
        TorchArchive(path)
    assert time.process_time() - start < 10  # 2 where nothing else runs


def test_an_empty_tensor_with_long_dimensions_is_empty(tmp_path: Path) -> None:
    data = tensor_pickle(4, 2**40, (2**20, 0), (2**40, 1), "FloatStorage")
    archive = TorchArchive(archive_of(tmp_path / "a.pt", data, {"a/data/0": bytes(16)}))
    assert archive.tensor(archive.content).shape == (2**20, 0)


def test_names_that_share_a_record_a_few_times_are_read_and_thousands_are_not(tmp_path: Path) -> None:
    shared = torch.ones(1000, 100)
    archive = saved(tmp_path / "a.pt", {f"name{number}": shared for number in range(4)})
    archive.require_no_larger(archive.content.values())
    archive = saved(tmp_path / "b.pt", {f"name{number}": shared for number in range(2000)})
    with pytest.raises(ArtifactError, match=r"its tensors would take 763 MB, and the file has 0\.4 MB: too many names"):
        archive.require_no_larger(archive.content.values())


def tensor_pickle(numbers: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...], kind: str) -> bytes:
    """A tensor as `torch.save` writes it, with any numbers."""

    class Storage:
        def __reduce__(self) -> str:
            return "Storage"

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, Storage):
                return ("storage", getattr(torch, kind), "0", "cpu", numbers)
            return None

    class Tensor:
        def __reduce__(self) -> tuple[Any, ...]:
            arguments: tuple[Any, ...] = (Storage(), offset, size, stride, False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(Tensor())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 0, (2, 3), (3, 1), "FloatStorage"), "larger than its numbers"),
        ((4, 0, (10**9, 4), (0, 1), "FloatStorage"), "larger than its numbers"),
        ((4, 3, (2,), (1,), "FloatStorage"), "larger than its numbers"),
        ((4, -1, (2,), (1,), "FloatStorage"), "malformed tensor"),
        ((4, 0, (2,), (-1,), "FloatStorage"), "malformed tensor"),
        ((4, 0, (2, 2), (1,), "FloatStorage"), "malformed tensor"),
        ((4, 0, (1,) * 40, (1,) * 40, "FloatStorage"), "malformed tensor"),
        ((10**60, 0, (2,), (1,), "FloatStorage"), "unknown type"),
        ((4, 0, (2**40, 2**40, 0), (1, 1, 1), "FloatStorage"), "larger than its numbers"),
        ((4, 0, (2**47, 2**47), (0, 0), "FloatStorage"), "larger than its numbers"),
        ((4, 0, (2,), (1,), "QInt8Storage"), "unknown type"),
    ],
)
def test_tensor_beyond_its_numbers_is_refused(arguments: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        TorchArchive(archive_of(tmp_path / "a.pt", tensor_pickle(*arguments)))


@pytest.mark.parametrize("record", [b"1234", None])
def test_record_of_another_length_is_refused(record: bytes | None, tmp_path: Path) -> None:
    data = tensor_pickle(4, 0, (4,), (1,), "FloatStorage")
    records = {} if record is None else {"a/data/0": record}
    archive = TorchArchive(archive_of(tmp_path / "a.pt", data, records))
    with pytest.raises(ArtifactError, match="wanted 16"):
        archive.tensor(archive.content)


def overlap(path: Path) -> None:
    """Let many members be the same bytes: a small file that unpacks to a large one."""
    with zipfile.ZipFile(path) as file:
        (member,) = file.infolist()
    with zipfile.ZipFile(path, "a") as file:
        for number in range(100):
            copy = zipfile.ZipInfo(f"a/data/{number}")
            copy.header_offset, copy.file_size, copy.compress_size = 0, member.file_size, member.file_size
            copy.CRC = member.CRC
            file.filelist.append(copy)
            file.NameToInfo[copy.filename] = copy
        file._didModify = True  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: archive_of(path, b"\x80\x02}.", compressed=True), "compressed members"),
        (lambda path: overlap(archive_of(path, b"\x80\x02}." + bytes(10_000))), "claims to hold more than it has"),
        (lambda path: archive_of(path, b"\x80\x02}.", {"b/data.pkl": b""}), "holds 2 data.pkl"),
        (lambda path: archive_of(path, b"\x80\x02}.", {"a/byteorder": b"big"}), "big-endian"),
        (lambda path: archive_of(path, b"\x80\x02}." + bytes(65 * 2**20)), "describes its content in more than"),
        (lambda path: path.write_bytes(archive_of(path, b"\x80\x02}.").read_bytes()[:-30]), "cannot be read"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda _: None, "cannot be read"),
    ],
)
def test_other_archives_are_refused(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    make(path)
    with pytest.raises(ArtifactError, match=message):
        TorchArchive(path)
