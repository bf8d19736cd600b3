"""What is refused before a runtime sees an ONNX file."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from appliance.errors import RouterError
from appliance.routers.onnx_file import check_network, open_session


def model(nodes=None, initializers=None, **options):
    nodes = nodes or [helper.make_node("Add", ["x", "w"], ["y"])]
    weights = [numpy_helper.from_array(np.ones(3, np.float32), "w")] if initializers is None else initializers
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], weights)
    return helper.make_model(graph, **options)


def refused(data, why):
    with pytest.raises(RouterError) as error:
        check_network(data, what="network.onnx")
    assert error.value.code == "ROUTER_NETWORK"
    assert why in error.value.cause


def external(name="w"):
    tensor = numpy_helper.from_array(np.ones(3, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def test_a_plain_network_passes():
    check_network(model().SerializeToString(), what="network.onnx")


def test_a_tensor_in_another_file_is_refused():
    refused(model(initializers=[external()]).SerializeToString(), "another file")


def test_a_tensor_in_another_file_hidden_in_an_attribute_is_refused():
    node = helper.make_node("Constant", [], ["y"], value=external())
    refused(model([node]).SerializeToString(), "another file")


def test_a_subgraph_is_looked_into():
    inner = helper.make_graph([], "inner", [], [], [external()])
    node = helper.make_node("Custom", ["x"], ["y"], body=inner)
    refused(model([node]).SerializeToString(), "another file")


@pytest.mark.parametrize("operator", ["Loop", "Scan", "If"])
def test_control_flow_is_refused(operator):
    refused(model([helper.make_node(operator, ["x"], ["y"])]).SerializeToString(), operator)


def test_an_operator_of_another_domain_is_refused():
    refused(model([helper.make_node("Run", ["x"], ["y"], domain="evil.example")]).SerializeToString(), "evil.example")
    opsets = [helper.make_opsetid("evil.example", 1)]
    refused(model(opset_imports=opsets).SerializeToString(), "evil.example")


def test_functions_of_its_own_are_refused():
    made = model()
    made.functions.append(onnx.FunctionProto(name="f"))
    refused(made.SerializeToString(), "functions")


def test_graphs_nested_too_deeply_are_refused():
    graph = helper.make_graph([], "g", [], [])
    for _ in range(12):
        graph = helper.make_graph([helper.make_node("Custom", ["x"], ["y"], body=graph)], "g", [], [])
    refused(model([helper.make_node("Custom", ["x"], ["y"], body=graph)]).SerializeToString(), "nested")


def test_a_second_graph_hidden_behind_the_first_is_refused():
    data = model().SerializeToString()
    second = onnx.ModelProto(graph=model(initializers=[external()]).graph).SerializeToString()
    refused(data + second, "another file")
    refused(b"", "0 graphs")


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_cut_file_is_refused(cut):
    refused(model().SerializeToString()[:-cut], "")


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_pass_and_never_crash(data):
    try:
        check_network(data, what="network.onnx")
    except RouterError as error:
        assert error.code == "ROUTER_NETWORK"


def test_a_network_that_the_runtime_would_take_for_another_format_is_refused():
    """One file, two models: legal ONNX whose producer's name reads as onnxruntime's own format, checked by nobody."""
    import onnxruntime

    plain = model(ir_version=8, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString()
    both = b"\x12\x7f\0\0ORTM" + b"\0" * 121 + plain
    assert onnx.load_from_string(both).graph == onnx.load_from_string(plain).graph
    with pytest.raises(Exception, match="ORT model"):
        onnxruntime.InferenceSession(both, providers=["CPUExecutionProvider"])
    refused(both, "own format")
    open_session(plain, what="network.onnx")
