"""The base of writers: the plan's order, completeness, resuming, and what a fingerprint tells apart."""

import json
import re
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import attrs
import numpy as np
import pytest

import edgekit
from edgekit.errors import LockedError, ResourceError, UsageError
from edgekit.formats import Places, PlannedDirectory, PlannedFile
from edgekit.formats.safetensors import Part
from edgekit.manifest import Manifest
from edgekit.precision import find_precision
from edgekit.recipe import Assignment, Plan

F32 = find_precision("float:F32")
PLAN = Plan("test", tuple(Assignment(name, name, (2, 4), F32, "") for name in "abc"))
TENSORS = [
    attrs.evolve(edgekit.encode(np.full((2, 4), index, np.float32), F32), name=name) for index, name in enumerate("abc")
]
VALUES = b"".join(np.ascontiguousarray(tensor.parts["values"], "<f4").tobytes() for tensor in TENSORS)


class File(PlannedFile):
    def __init__(self, path, plan=PLAN, manifest=None, *, header=b"HEAD", nbytes=100, sizes=(32, 32, 32)):
        super().__init__(path, plan, manifest or Manifest(), header=header, nbytes=nbytes, sizes=sizes)

    def append(self, tensor, assignment):
        assert assignment.name == tensor.name
        self.file.write(tensor.parts["values"].tobytes())


class Directory(PlannedDirectory):
    data = "tensors.bin"
    owned = ("tensors.bin", "notes.json", "edgekit.manifest.json")

    def __init__(self, path, identity=b"mine"):
        super().__init__(path, PLAN, Manifest(), header=bytes(4), nbytes=100, identity=identity)

    def append(self, tensor, assignment):
        begin = self.file.offset
        self.file.write(tensor.parts["values"].tobytes())
        return f"{tensor.name} at {begin}"

    def finish(self):
        self.file.write(b"END")
        self.file.overwrite(0, b"HEAD")

    def small_files(self):
        yield "notes.json", json.dumps(self.notes).encode()
        yield "edgekit.manifest.json", self.manifest.to_json().encode()


class Placed(PlannedFile):
    """Parts at multiples of 16, so that there are zeros between them."""

    def __init__(self, path, plan):
        super().__init__(path, plan, Manifest(), header=b"HEAD", nbytes=1000)

    def place(self, parts, assignment):
        places = Places.in_order(parts.values(), self.file.offset, 16)
        return attrs.evolve(places, end=places.end + 3, note=f"{list(parts)} at {self.file.offset}")


class Flipped(Placed):
    """Stores another form of one part."""

    def stored(self, key, array, assignment):
        return array ^ np.uint8(0x88) if (key, assignment.name) == ("codes", "stack") else array


class Collecting(File):
    """Takes tensors of three parts as a whole."""

    def append(self, tensor, assignment):
        assert tensor.shape == assignment.shape
        for part in tensor.parts.values():
            self.file.write(np.ascontiguousarray(part).data)


INT4 = find_precision("affine:int4-asym-g32")
STACK = attrs.evolve(
    edgekit.encode(np.random.default_rng(0).standard_normal((3, 5, 64)).astype(np.float32), INT4), name="stack"
)
AFTER = attrs.evolve(TENSORS[0], name="after")
STACKED = Plan(
    "test", (Assignment("stack", "stack", (3, 5, 64), INT4, ""), Assignment("after", "after", (2, 4), F32, ""))
)


def rows_of(tensor, start, stop):
    parts = {name: part[start:stop] for name, part in tensor.parts.items()}
    return attrs.evolve(tensor, parts=parts, shape=(stop - start, tensor.shape[-1]))


def write_stack(writer, step):
    for start in range(0, 15, step):
        writer.write_rows(rows_of(STACK, start, min(start + step, 15)), start)
    writer.write(AFTER)
    writer.commit()
    writer.close()


@pytest.mark.parametrize("step", [1, 4, 15])
def test_a_tensor_in_rows_has_the_bytes_of_the_whole(step, tmp_path: Path):
    writer = Placed(tmp_path / "whole", STACKED)
    for tensor in (STACK, AFTER):
        writer.write(tensor)
    writer.commit()
    writer.close()
    write_stack(Placed(tmp_path / "rows", STACKED), step)
    expected = bytearray(b"HEAD")
    for tensor in (STACK, AFTER):
        for part in tensor.parts.values():
            expected += bytes(-len(expected) % 16) + part.tobytes()
        expected += bytes(3)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "rows").read_bytes() == expected
    collected = Collecting(tmp_path / "collected", STACKED, header=b"", sizes=(STACK.nbytes, AFTER.nbytes))
    write_stack(collected, step)
    parts = [part for tensor in (STACK, AFTER) for part in tensor.parts.values()]
    assert (tmp_path / "collected").read_bytes() == b"".join(part.tobytes() for part in parts)


def test_a_tensor_cut_off_in_its_rows_is_written_anew(tmp_path: Path):
    """What was scattered is checked when a run goes on: a byte that was changed meanwhile is found."""
    path = tmp_path / "m"
    writer = Placed(path, STACKED)
    writer.write_rows(rows_of(STACK, 0, 7), 0)
    writer.close(keep=True)
    writer = Placed(path, STACKED)
    assert writer.done == 0
    for start, stop in ((0, 7), (7, 15)):
        writer.write_rows(rows_of(STACK, start, stop), start)
    notes = writer.notes
    writer.close(keep=True)
    partial = tmp_path / ".m.partial"
    kept, journal = partial.read_bytes(), (tmp_path / ".m.partial.json").read_bytes()
    writer = Placed(path, STACKED)
    assert (writer.done, writer.notes) == (1, notes)
    writer.close(keep=True)
    for place in (5, 200, len(kept) - 1):
        partial.write_bytes(kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1 :])
        (tmp_path / ".m.partial.json").write_bytes(journal)
        writer = Placed(path, STACKED)
        assert writer.done == 0
        writer.close()
    write_stack(Placed(path, STACKED), 4)
    write_stack(Placed(tmp_path / "once", STACKED), 15)
    assert path.read_bytes() == (tmp_path / "once").read_bytes()


def parts_of(tensor) -> dict[str, Part]:
    return {key: Part(key, part.dtype.name, part.shape) for key, part in tensor.parts.items()}


def test_tensors_with_a_place_have_the_bytes_of_those_in_order(tmp_path: Path):
    """Rows of both tensors come in any order, a few at a time; a part without rows comes with the first of them."""
    write_stack(Placed(tmp_path / "rows", STACKED), 15)
    writer = Placed(tmp_path / "placed", STACKED)
    stack, after = (writer.allot(t.name, t.precision, parts_of(t)) for t in (STACK, AFTER))
    assert (writer.placed, writer.done) == (2, 0)
    after.put(0, 2, [(0, dict(AFTER.parts))])
    for start, stop in ((9, 15), (0, 4), (4, 9)):
        stack.put(start, stop, ((row, dict(rows_of(STACK, row, row + 1).parts)) for row in range(start, stop)))
    with pytest.raises(UsageError, match="in the order in which they got their places"):
        writer.complete(after)
    with pytest.raises(UsageError, match="only 0 of 2 tensors were written"):
        writer.commit()
    writer.complete(stack)
    writer.complete(after)
    writer.commit()
    writer.close()
    assert (tmp_path / "placed").read_bytes() == (tmp_path / "rows").read_bytes()


def test_a_part_is_written_as_the_format_stores_it_in_order_and_in_places(tmp_path: Path):
    flipped = attrs.evolve(STACK, parts={**STACK.parts, "codes": STACK.parts["codes"] ^ np.uint8(0x88)})
    with closing(Placed(tmp_path / "expected", STACKED)) as writer:
        writer.write(flipped)
        writer.write(AFTER)
        writer.commit()
    write_stack(Flipped(tmp_path / "rows", STACKED), 4)
    with closing(Flipped(tmp_path / "placed", STACKED)) as writer:
        stack, after = (writer.allot(t.name, t.precision, parts_of(t)) for t in (STACK, AFTER))
        after.put(0, 2, [(0, dict(AFTER.parts))])
        for start, stop in ((9, 15), (0, 9)):
            stack.put(start, stop, [(start, dict(rows_of(STACK, start, stop).parts))])
        writer.complete(stack)
        writer.complete(after)
        writer.commit()
    expected = (tmp_path / "expected").read_bytes()
    assert (tmp_path / "rows").read_bytes() == (tmp_path / "placed").read_bytes() == expected
    assert STACK.parts["codes"].tobytes() not in expected


def test_a_tensor_cut_off_in_its_rows_goes_on_after_them(tmp_path: Path):
    path = tmp_path / "m"
    writer = Placed(path, STACKED)
    stack = writer.allot(STACK.name, STACK.precision, parts_of(STACK))
    for start, stop in ((9, 15), (0, 4)):
        stack.put(start, stop, [(start, dict(rows_of(STACK, start, stop).parts))])
    writer.close(keep=True)
    writer = Placed(path, STACKED)
    stack = writer.allot(STACK.name, STACK.precision, parts_of(STACK))
    asked = [(0, 5), (8, 15), (9, 15), (0, 4), (4, 9)]
    assert [stack.resumed(*rows) for rows in asked] == [False, False, True, True, False]
    stack.put(4, 9, [(4, dict(rows_of(STACK, 4, 9).parts))])
    writer.complete(stack)
    writer.write(AFTER)
    writer.commit()
    writer.close()
    write_stack(Placed(tmp_path / "once", STACKED), 15)
    assert path.read_bytes() == (tmp_path / "once").read_bytes()


def test_rows_that_were_cut_elsewhere_are_written_again(tmp_path: Path):
    """As after a run on another number of cores, and a third one on as many as the first: pieces overlap."""
    missing = []
    for bounds in ((0, 6, 15), (0, 4, 9, 15), (0, 6, 15)):
        writer = Placed(tmp_path / "m", STACKED)
        stack = writer.allot(STACK.name, STACK.precision, parts_of(STACK))
        missing.append([rows for rows in pairwise(bounds) if not stack.resumed(*rows)])
        for start, stop in missing[-1]:
            if (start, stop) != (9, 15):
                stack.put(start, stop, [(start, dict(rows_of(STACK, start, stop).parts))])
        if len(missing) < 3:
            writer.close(keep=True)
    assert missing == [[(0, 6), (6, 15)], [(0, 4), (4, 9), (9, 15)], [(0, 6)]]  # a shorter piece took the first's place
    writer.complete(stack)
    writer.write(AFTER)
    writer.commit()
    writer.close()
    write_stack(Placed(tmp_path / "once", STACKED), 15)
    assert (tmp_path / "m").read_bytes() == (tmp_path / "once").read_bytes()


def test_other_tensors_get_no_place(tmp_path: Path):
    writer = Placed(tmp_path / "m", STACKED)
    with pytest.raises(UsageError, match="plan's next tensor are"):
        writer.allot(AFTER.name, AFTER.precision, parts_of(AFTER))
    stack = writer.allot(STACK.name, STACK.precision, parts_of(STACK))
    first = dict(rows_of(STACK, 0, 4).parts)
    with pytest.raises(UsageError, match="rows 0 to 5 have other sizes than planned"):
        stack.put(0, 5, [(0, first)])
    key = next(iter(first))
    with pytest.raises(UsageError, match=f"its encoder gives {key} .float64., planned are {key} "):
        stack.put(0, 4, [(0, {**first, key: first[key].astype(np.float64)})])
    writer.close()
    collected = Collecting(tmp_path / "collected", STACKED, header=b"", sizes=(STACK.nbytes, AFTER.nbytes))
    assert (writer.in_any_order, collected.in_any_order) == (True, False)
    with pytest.raises(UsageError, match="tensor 'stack' is written whole, in `append`"):
        collected.allot(STACK.name, STACK.precision, parts_of(STACK))
    collected.close()
    assert list(tmp_path.iterdir()) == []


def test_rows_out_of_order_are_refused(tmp_path: Path):
    writer = Placed(tmp_path / "m", STACKED)
    writer.write_rows(rows_of(STACK, 0, 7), 0)
    for start, stop in ((0, 7), (8, 9)):
        given = f"rows {start} to {stop} of tensor 'stack'"
        message = f"{tmp_path / 'm'}: {given}, but row 7 of 15 is next; write them in order"
        with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
            writer.write_rows(rows_of(STACK, start, stop), start)
    with pytest.raises(UsageError, match="row 7 of 15 is next"):
        writer.write_rows(rows_of(STACK, 0, 9), 7)
    with pytest.raises(UsageError, match="plan's next tensor are"):
        writer.write(AFTER)
    with pytest.raises(UsageError, match="only 0 of 2 tensors were written"):
        writer.commit()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def write_all(writer, tensors=TENSORS):
    for tensor in tensors[writer.done :]:
        writer.write(tensor)
    writer.commit()
    writer.close()


def test_a_file_has_header_and_tensors_and_its_manifest_beside_it(tmp_path: Path):
    write_all(File(tmp_path / "m.raw"))
    assert (tmp_path / "m.raw").read_bytes() == b"HEAD" + VALUES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.raw", "m.raw.edgekit.json"]


def test_a_directory_has_the_tensors_and_the_small_files(tmp_path: Path):
    write_all(Directory(tmp_path / "m"))
    assert (tmp_path / "m" / "tensors.bin").read_bytes() == b"HEAD" + VALUES + b"END"
    assert json.loads((tmp_path / "m" / "notes.json").read_bytes()) == ["a at 4", "b at 36", "c at 68"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "edgekit.manifest.json",
        "m",
        "notes.json",
        "tensors.bin",
    ]


@pytest.mark.parametrize("make", [File, Directory])
def test_an_interrupted_run_goes_on(make, tmp_path: Path):
    """And what it writes is what one run writes, the notes of the first run included."""
    for stop in range(3):
        writer = make(tmp_path / f"{stop}")
        for tensor in TENSORS[:stop]:
            writer.write(tensor)
        writer.close(keep=True)
        assert not (tmp_path / f"{stop}").exists()
        writer = make(tmp_path / f"{stop}")
        assert writer.done == stop
        write_all(writer)
    write_all(make(tmp_path / "whole"))
    whole = contents(tmp_path / "whole")
    assert whole
    assert all(contents(tmp_path / f"{stop}") == whole for stop in range(3))


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {"" if file == path else file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize(
    "other",
    [
        lambda path: File(path, header=b"DEAD"),
        lambda path: File(path, manifest=Manifest(sources={"weights": "another hash"})),
    ],
    ids=["header", "source"],
)
def test_a_run_that_would_write_something_else_begins_anew(other, tmp_path: Path):
    writer = File(tmp_path / "m")
    writer.write(TENSORS[0])
    writer.close(keep=True)
    writer = other(tmp_path / "m")
    assert writer.done == 0
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_another_identity_begins_anew(tmp_path: Path):
    for identity, done in ((b"mine", 0), (b"mine", 1), (b"other", 0)):
        writer = Directory(tmp_path / "m", identity)
        assert writer.done == done
        if not done:
            writer.write(TENSORS[0])
        writer.close(keep=True)


def test_without_keep_nothing_is_left(tmp_path: Path):
    for make in (File, Directory):
        writer = make(tmp_path / "m")
        writer.write(TENSORS[0])
        writer.close()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((32, 32, 32), "(name, precision, bytes) of the plan's next tensor are ('a', 'float:F32', 32), "
                       "not ('b', 'float:F32', 32)"),
        (None, "(name, precision) of the plan's next tensor are ('a', 'float:F32'), not ('b', 'float:F32')"),
    ],
)  # fmt: skip
def test_the_plans_order(sizes, message: str, tmp_path: Path):
    writer = File(tmp_path / "m", sizes=sizes)
    whole = f"{tmp_path / 'm'}: {message}; write in the plan's order"
    with pytest.raises(UsageError, match=f"^{re.escape(whole)}$"):
        writer.write(TENSORS[1])
    assert writer.done == 0
    writer.close()


def test_the_bytes_of_a_tensor(tmp_path: Path):
    writer = File(tmp_path / "m", sizes=(32, 16, 32))
    writer.write(TENSORS[0])
    with pytest.raises(UsageError, match=r"are \('b', 'float:F32', 16\), not \('b', 'float:F32', 32\)"):
        writer.write(TENSORS[1])
    writer.close()


@pytest.mark.parametrize("make", [File, Directory])
def test_no_tensor_is_missing_and_none_is_one_more(make, tmp_path: Path):
    path = tmp_path / "m"
    writer = make(path)
    writer.write(TENSORS[0])
    with pytest.raises(
        UsageError, match=f"^{re.escape(str(path))}: only 1 of 3 tensors were written; write them all before commit$"
    ):
        writer.commit()
    for tensor in TENSORS[1:]:
        writer.write(tensor)
    with pytest.raises(UsageError, match=f"^{re.escape(str(path))}: tensor 'd' is one more than the plan's 3$"):
        writer.write(attrs.evolve(TENSORS[0], name="d"))
    writer.close()


def test_what_cannot_begin_lets_the_target_go(tmp_path: Path):
    with pytest.raises(ResourceError, match="bytes needed"):
        File(tmp_path / "m", nbytes=1 << 60)
    writer = File(tmp_path / "m")
    with pytest.raises(LockedError):
        File(tmp_path / "m")
    write_all(writer)
