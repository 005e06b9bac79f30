"""Reading IR without the library: what it says, and every way in which it may be damaged or hostile."""

import json
import os
from fractions import Fraction

import numpy as np
import pytest

import edgekit
from edgekit.errors import EdgekitError, InvalidFileError, MissingFileError, UnsupportedModelError, UsageError
from edgekit.files.guard import refuse_harm
from edgekit.files.reader import Reader
from edgekit.precision import find_precision
from edgekit_openvino.elements import ELEMENTS, constant_bytes, storable, stored_parts
from edgekit_openvino.format import OpenVinoFormat
from edgekit_openvino.ir import read

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)
XML = """<?xml version="1.0"?>
<net name="small" version="11">
  <layers>
    <layer id="0" name="x" type="Parameter" version="opset1"><data shape="?,3" element_type="f32"/></layer>
    <layer id="1" name="w" type="Const" version="opset1">
      <data element_type="f32" shape="2, 3" offset="0" size="24"/>
    </layer>
    <layer id="2" name="product" type="MatMul" version="opset1"><data transpose_a="false" transpose_b="true"/></layer>
    <layer id="3" name="y" type="Result" version="opset1"/>
  </layers>
  <edges>
    <edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
    <edge from-layer="1" from-port="0" to-layer="2" to-port="1"/>
    <edge from-layer="2" from-port="2" to-layer="3" to-port="0"/>
  </edges>
  <rt_info/>
</net>
"""


BINARY = WEIGHTS.tobytes()


def ir(folder, xml=XML, binary=BINARY):
    (folder / "openvino_model.xml").write_text(xml)
    if binary is not None:
        (folder / "openvino_model.bin").write_bytes(binary)
    return folder


def test_a_graph_is_read(tmp_path):
    artifact = edgekit.open(ir(tmp_path))
    assert (artifact.format, [file.name for file in artifact.files]) == (
        "openvino",
        ["openvino_model.bin", "openvino_model.xml"],
    )
    np.testing.assert_array_equal(artifact.tensors["w"].read(), WEIGHTS)
    np.testing.assert_array_equal(artifact.tensors["w"].float32(1, 2), WEIGHTS[1:])


def test_a_file_of_another_name_is_read(tmp_path):
    (tmp_path / "net.xml").write_text(XML)
    (tmp_path / "net.bin").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "config.json").write_text("{}")  # somebody else's
    artifact = edgekit.open(tmp_path / "net.xml")
    assert [file.name for file in artifact.files] == ["net.bin", "net.xml"]
    assert list(artifact.tensors) == ["w"]


def test_other_xml_is_none(tmp_path):
    (tmp_path / "page.xml").write_text("<html/>")
    assert not OpenVinoFormat().matches(tmp_path / "page.xml")
    assert not OpenVinoFormat().matches(tmp_path / "none.xml")


def test_a_graph_of_no_family_says_so(tmp_path):
    with pytest.raises(UnsupportedModelError) as caught:
        _ = edgekit.open(ir(tmp_path)).model
    assert str(caught.value) == f"{tmp_path}: an IR without config.json does not say its family; it runs as it is"


def test_a_graph_with_other_names_says_so(tmp_path):
    config = {
        "model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
        "vocab_size": 4, "max_position_embeddings": 4,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError) as caught:
        _ = edgekit.open(ir(tmp_path)).model
    assert str(caught.value) == (
        f"{tmp_path}: its graph has no constant model.embed_tokens.weight (11 of 11 are missing), so another program "
        "wrote it; it runs as it is, and to change it convert it from its original files"
    )


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + XML.split("?>", 1)[1]
)
DAMAGED = {
    "not well-formed XML: no element found (line 9)": "\n".join(XML.splitlines()[:8]) + "\n",
    "it declares a document type, with which a small file can grow without bound; no IR has one (line 1)": BOMB,
    "the root is '', an IR's is 'net' (line 2)": "<nets>\n</nets>",
    "no layers (line 1)": '<net version="11"></net>',
    "IR version '7'; this edgekit reads 10 and 11 (line 2)": XML.replace('version="11"', 'version="7"'),
    "two layers have the id '1' (line 8)": XML.replace('id="2"', 'id="1"'),
    "a layer without type (line 9)": XML.replace(' type="Result"', ""),
    "an edge between layers '9' and '2', which are not both there (line 12)": XML.replace('from-layer="0"', 'from-layer="9"'),
    "an edge without to-port (line 14)": XML.replace('to-layer="3" to-port="0"', 'to-layer="3"'),
    "an edge to port 'x' (line 14)": XML.replace('to-layer="3" to-port="0"', 'to-layer="3" to-port="x"'),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "xml"), DAMAGED.items(), ids=[fault.partition("(")[0][:30] for fault in DAMAGED])
def test_damaged_xml(fault, xml, tmp_path):
    with pytest.raises(InvalidFileError) as caught:
        OpenVinoFormat().open(ir(tmp_path, xml))
    assert str(caught.value) == f"{tmp_path / 'openvino_model.xml'}: {fault}; fetch or convert it again"


CONSTANTS = {
    "(line 5) does not say its type, shape, offset and size": ('size="24"', 'size="many"'),
    "(line 5) has 20 bytes, f32 [2, 3] takes 24": ('size="24"', 'size="20"'),
    "(line 5) has impossible sizes: shape [2, 3], 24 bytes at -4": ('offset="0"', 'offset="-4"'),
    "(line 5) has impossible sizes: shape [2, -3], 24 bytes at 0": ('shape="2, 3"', 'shape="2, -3"'),
    "(line 5) has impossible sizes: shape [2, 1000000000000000000], 24 bytes at 0": ('"2, 3"', '"2, 1000000000000000000"'),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "change"), CONSTANTS.items(), ids=[fault[9:40] for fault in CONSTANTS])
def test_damaged_constants(fault, change, tmp_path):
    with pytest.raises(InvalidFileError) as caught:
        OpenVinoFormat().open(ir(tmp_path, XML.replace(*change)))
    assert str(caught.value) == f"{tmp_path / 'openvino_model.xml'}: constant 'w' {fault}; fetch or convert it again"


def test_no_binary(tmp_path):
    with pytest.raises(MissingFileError) as caught:
        edgekit.open(ir(tmp_path, binary=None))
    where = tmp_path / "openvino_model.bin"
    assert str(caught.value) == f"{where}: no such file; openvino_model.xml has its 1 constants there, fetch it"


@pytest.mark.parametrize(
    ("size", "fault"),
    [
        (23, "23 bytes, but constant 'w' ends at byte 24; it is cut off, or belongs to another model"),
        (0, "0 bytes, but constant 'w' ends at byte 24; it is cut off, or belongs to another model"),
        (25, "25 bytes, but the last constant, 'w', ends at byte 24; it belongs to another model"),
    ],
)
def test_a_binary_of_the_wrong_size(size, fault, tmp_path):
    with pytest.raises(InvalidFileError) as caught:
        edgekit.open(ir(tmp_path, binary=bytes(size)))
    assert str(caught.value) == f"{tmp_path / 'openvino_model.bin'}: {fault}; fetch or convert it again"


def test_a_binary_that_is_cut_after_it_was_opened(tmp_path):
    artifact = edgekit.open(ir(tmp_path))
    (tmp_path / "openvino_model.bin").write_bytes(bytes(10))
    with pytest.raises(InvalidFileError, match="is cut off"):
        artifact.tensors["w"].read()


@pytest.mark.parametrize("opset", ["opset99", "opset0", "opset", "opset1x", "made_up"])
def test_operations_that_no_library_knows(opset, tmp_path):
    xml = XML.replace('type="MatMul" version="opset1"', f'type="MatMul" version="{opset}"')
    with pytest.raises(
        UnsupportedModelError, match=f"layer 'product' is of '{opset}', the library here knows opset1 to"
    ):
        edgekit.open(ir(tmp_path, xml))


def test_an_element_type_that_nobody_knows(tmp_path):
    with pytest.raises(
        UnsupportedModelError, match=r"constant 'w' \(line 5\) is of type 'f5', which this edgekit does not"
    ):
        edgekit.open(ir(tmp_path, XML.replace('element_type="f32" shape="2, 3"', 'element_type="f5" shape="2, 3"')))


def test_a_link_out_of_the_directory(tmp_path):
    (tmp_path / "a").mkdir()
    folder = ir(tmp_path / "a", binary=None)
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes())
    (folder / "openvino_model.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidFileError, match="leads out of the directory"):
        edgekit.open(folder)


def test_every_cut_of_the_xml_is_refused(tmp_path):
    for length in range(0, len(XML) - 8, 7):
        (tmp_path / "openvino_model.xml").write_text(XML[:length])
        (tmp_path / "openvino_model.bin").write_bytes(WEIGHTS.tobytes())
        with pytest.raises(EdgekitError):
            OpenVinoFormat().open(tmp_path)


# Element types.


def test_constants_take_the_bytes_that_the_library_gives_them():
    assert {element: constant_bytes(element, (3, 5)) for element in ("f32", "i8", "i4", "u3", "u2", "u1", "u6")} == {
        "f32": 60, "i8": 15, "i4": 8, "u3": 6, "u2": 4, "u1": 2, "u6": 12,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["int8-sym-channel", "int8-asym-channel", "int8-sym-g32", "int4-sym-g64", "int4-asym-g32", "int3-sym-g32", "int2-sym-g64",
     "nf4-g32", "cb4-channel", "fp4-g32", "fp8-g64", "mxfp4", "mxfp8", "nvfp4"],
)  # fmt: skip
def test_the_parts_of_a_precision_are_its_constants(name):
    precision = find_precision(f"openvino:{name}")
    encoded = edgekit.encode(np.random.default_rng(0).standard_normal((6, 128), np.float32), precision)
    stored = stored_parts("w", precision, (6, 128))
    assert {key: part.nbytes for key, part in encoded.parts.items()} == {key: s.nbytes for key, s in stored.items()}
    bits = sum(Fraction(ELEMENTS[s.element][0] * int(np.prod(s.shape))) for s in stored.values())
    assert bits >= precision.bits_per_weight * 6 * 128


def test_what_an_ir_holds():
    held = ["openvino:int4-sym-g64", "float:F32", "float:F16", "float:BF16"]
    assert [storable(find_precision(name)) for name in held] == [True] * 4
    assert not storable(find_precision("ggml:Q4_K"))


NET = b'<net version="11"><layers><layer id="0" name="a" type="Parameter"/></layers><edges>%s</edges></net>'
EDGE = b'<edge from-layer="0" from-port="0" to-layer="0" to-port="%s"/>'
CONST = b'<net version="11"><layers><layer id="0" name="a" type="Const">%s</layer></layers></net>'
DATA = b'<data element_type="f32" offset="0" size="4" shape="%s"/>'
HUGE = b",".join([b"200000000000000"] * 20)
HOSTILE = {
    "an encoding of no name": (
        b'<?xml version="1.0" encoding="klingon"?><net version="11"/>',
        "it is written in 'klingon'",
    ),
    "utf-7": (
        b'<?xml version="1.0" encoding="utf-7"?><net version="11"/>',
        "it is written in 'utf-7'; an IR is in UTF-8",
    ),
    "latin-1": (b'<?xml version="1.0" encoding="latin-1"?><net version="11"/>', "it is written in 'latin-1'; an IR is"),
    "utf-16": ('<net version="11"/>'.encode("utf-16"), "it is written in UTF-16 or UTF-32; an IR is in UTF-8"),
    "a port of 5,000 digits": (NET % (EDGE % (b"1" * 5000)), "an edge to port '1111"),
    "a port in other digits": (NET % (EDGE % "٣".encode()), "an edge to port '٣'"),
    "a negative port": (NET % (EDGE % b"-1"), "an edge to port '-1'"),
    "an offset of 5,000 digits": (
        CONST % (DATA % b"1").replace(b'offset="0"', b'offset="' + b"1" * 5000 + b'"'),
        "does not say its type, shape, offset and size",
    ),
    "a shape whose product has thousands of digits": (CONST % (DATA % HUGE), "has impossible sizes: shape [2000000"),
    "a shape of 5,000 dimensions": (CONST % (DATA % b",".join([b"2"] * 5000)), "does not say its type, shape"),
    "a shape of 33 dimensions": (CONST % (DATA % b",".join([b"1"] * 33)), "has impossible sizes: shape [1, 1"),
    "a long attribute": (
        NET % (b'<edge a="' + b"a" * (16 << 20) + b'"/>'),
        "a tag or a comment of more than 4,194,304",
    ),
    "a long comment": (NET % (b"<!--" + b"a" * (16 << 20) + b"-->"), "a tag or a comment of more than 4,194,304"),
    "many attributes": (
        CONST % b"".join(b'<data a%d=""/>' % i for i in range(1025)),
        "a layer with more than 1,024 attributes",
    ),
    "deep": (NET % (b"<a>" * 65), "elements nested more than 64 deep"),
}


@pytest.mark.parametrize(("xml", "fault"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_xml(xml, fault, tmp_path):
    path = tmp_path / "openvino_model.xml"
    path.write_bytes(xml)
    with pytest.raises(InvalidFileError) as caught:
        read(path)
    assert fault in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_layers_and_edges_have_limits(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit_openvino.ir.MAX_LAYERS", 3)
    monkeypatch.setattr("edgekit_openvino.ir.MAX_EDGES", 2)
    path = tmp_path / "openvino_model.xml"
    path.write_bytes(NET % b"".join(EDGE % b"%d" % i for i in range(3)))
    with pytest.raises(InvalidFileError, match="more than 2 edges"):
        read(path)
    path.write_bytes(
        b'<net version="11"><layers>' + b"".join(b'<layer id="%d" name="a" type="P"/>' % i for i in range(4))
    )
    with pytest.raises(InvalidFileError, match="more than 3 layers"):
        read(path)


def test_an_attribute_as_long_as_a_chat_template_may_be(tmp_path):
    path = tmp_path / "openvino_model.xml"
    path.write_bytes(NET % (b'<edge a="' + b"a" * (3 << 20) + b'" ' + EDGE[6:] % b"0"))
    assert list(read(path).layers) == ["0"]


def test_a_file_that_is_cut_while_it_is_parsed(tmp_path, monkeypatch):
    path, read_bytes = ir(tmp_path, XML) / "openvino_model.xml", Reader.read_bytes

    def cutting(self, begin, nbytes):
        data = read_bytes(self, begin, 100)
        os.truncate(path, 150)
        return data

    monkeypatch.setattr(Reader, "read_bytes", cutting)
    with pytest.raises(InvalidFileError, match="not well-formed XML"):
        read(path)


@pytest.mark.parametrize("relation", ["xml", "bin", "directory", "inside"])
def test_no_target_harms_an_ir(tmp_path, relation):
    (tmp_path / "ir").mkdir()
    source = edgekit.open(ir(tmp_path / "ir"))
    files = {file: file.read_bytes() for file in source.files}
    targets = {
        "xml": next(file for file in files if file.suffix == ".xml"),
        "bin": next(file for file in files if file.suffix == ".bin"),
        "directory": source.path,
        "inside": source.path / "new",
    }
    with pytest.raises(UsageError, match=r"the target (is|holds|lies inside) the source"):
        refuse_harm(targets[relation], source.reads)
    assert {file: file.read_bytes() for file in source.files} == files
