"""Files that are damaged, hostile or beyond what can be done: clear errors, no traceback."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from click.testing import CliRunner  # noqa: E402

import jaxinfer as ji  # noqa: E402
from jaxinfer.cli import main  # noqa: E402
from jaxinfer.core.errors import CheckpointError, ConversionError  # noqa: E402
from tests.onnx_front.test_convert import linear, model_of  # noqa: E402


def external(tmp_path, **entries):
    """Write a model whose weight is said to lie somewhere."""
    model = linear()
    tensor = next(t for t in model.graph.initializer if t.name == "w")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    path = tmp_path / "folder" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
    return path


def test_missing_external_data_names_the_file(tmp_path):
    path = external(tmp_path, location="w.bin")
    with pytest.raises(CheckpointError, match=r"(?s)w: its external data is missing: .*w\.bin"):
        ji.from_onnx(path)


def test_short_external_data(tmp_path):
    path = external(tmp_path, location="w.bin")
    path.with_name("w.bin").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match="which has 100: it is cut short"):
        ji.from_onnx(path)


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin", "..\\secret.bin", "", "."]
)
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(b"\0" * 37 * 41 * 4)
    with pytest.raises(CheckpointError, match="refused: its external data"):
        ji.from_onnx(external(tmp_path, location=location))


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.bin").write_bytes(b"\0" * 37 * 41 * 4)
    path = external(tmp_path, location="w.bin")
    path.with_name("w.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(CheckpointError, match="refused: its external data"):
        ji.from_onnx(path)


@pytest.mark.parametrize("entries", [{"length": 12}, {"offset": -4}, {"offset": "x"}])
def test_impossible_places(tmp_path, entries):
    path = external(tmp_path, location="w.bin", **entries)
    path.with_name("w.bin").write_bytes(b"\0" * 37 * 41 * 4)
    with pytest.raises(CheckpointError, match="w: "):
        ji.from_onnx(path)


def test_a_shape_larger_than_its_data(tmp_path):
    model = linear()
    model.graph.initializer[0].dims[0] = 2**40
    with pytest.raises(CheckpointError, match=r"needs .* bytes, the file has"):
        ji.from_onnx(model)


def test_opsets_out_of_range():
    for version in (3, 999):
        model = linear()
        model.opset_import[0].version = version
        with pytest.raises(ConversionError, match=f"opset {version}; supported are 7 to"):
            ji.from_onnx(model)


def test_an_unknown_operator_of_the_standard_domain():
    model = linear()
    model.graph.node[0].op_type = "MatMull"
    with pytest.raises(ConversionError, match=r"not a valid ONNX model.*MatMull"):
        ji.from_onnx(model)


def test_types_that_contradict_each_other():
    model = model_of("agraph (float[2] x, int64[2] z) => (float[2] y) { y = Add(x, z) }")
    with pytest.raises(ConversionError, match="contradict each other"):
        ji.from_onnx(model)


def test_inputs_without_a_shape_and_unknown_names():
    model = linear()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ConversionError, match=r"(?s)x: float32, but the model does not.*--input"):
        ji.from_onnx(model)
    assert ji.from_onnx(model, inputs={"x": ("b", 37)}).inputs[0].shape == ("b", 37)
    with pytest.raises(ConversionError, match="other: no such input"):
        ji.from_onnx(linear(), inputs={"other": (2, 3)})
    with pytest.raises(ConversionError, match="given 36 for axis 1, the model has 37"):
        ji.from_onnx(linear(), inputs={"x": (2, 36)})


def test_strings_and_shapes_that_depend_on_data():
    with pytest.raises(ConversionError, match="a tensor of strings"):
        ji.from_onnx(model_of("agraph (string[2] x) => (string[2] y) { y = Identity(x) }"))
    with pytest.raises(ConversionError, match=r"NonZero .*depends on the data.*TopK"):
        ji.from_onnx(model_of("agraph (float[2] x) => (int64[1, n] y) { y = NonZero(x) }"))


@pytest.fixture
def bad_files(tmp_path):
    data = linear().SerializeToString()
    files = {
        "cut.onnx": data[: len(data) // 2],
        "noise.onnx": np.random.default_rng(0).bytes(4096),
        "empty.onnx": b"",
        "text.onnx": b"{'not': 'a protobuf'}",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path, [*files, "absent.onnx"]


def test_the_command_line_says_it_in_one_message(bad_files):
    folder, names = bad_files
    for name in names:
        out = folder / "out"
        result = CliRunner().invoke(main, ["convert", str(folder / name), "-o", str(out)])
        assert result.exit_code == 1, name
        assert "Traceback" not in result.output
        assert name in result.output
        assert not out.exists()


def test_the_command_line_converts_and_verifies(tmp_path):
    onnx.save_model(linear(), tmp_path / "linear.onnx")
    source, out = str(tmp_path / "linear.onnx"), str(tmp_path / "out")
    result = CliRunner().invoke(main, ["convert", source, "-o", out])
    assert result.exit_code == 0, result.output
    assert "x: float32[batch, 37]" in result.output
    result = CliRunner().invoke(main, ["verify", out, "--against", source])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(
        main, ["convert", source, "-o", out, "--overwrite", "--input", "x=float32[b=3,36]"]
    )
    assert result.exit_code == 1
    assert "given 36 for axis 1" in result.output
    result = CliRunner().invoke(main, ["convert", source, "-o", out, "--dtype", "float16"])
    assert result.exit_code == 1
