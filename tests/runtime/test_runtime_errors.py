"""Sentences made from the runtime's messages: the texts are what ONNX Runtime 1.31 says."""

from __future__ import annotations

import pytest

from onnx_pointwise.runtime.runtime_errors import sentence

PLUGIN = (
    "/onnxruntime_src/onnxruntime/core/session/plugin_ep/ep_plugin_provider_interfaces.cc:71 virtual "
    "std::unique_ptr<onnxruntime::IExecutionProvider> onnxruntime::PluginExecutionProviderFactory::CreateProvider("
    "const OrtSessionOptions&, const OrtLogger&) Error creating execution provider: [ONNXRuntimeError] : 11 : "
    "EP_FAIL : /onnxruntime_src/onnxruntime/core/providers/webgpu/webgpu_context.cc:136 onnxruntime::webgpu::"
    "WebGpuContext::Initialize(const onnxruntime::webgpu::WebGpuContextConfig&)::<lambda()> adapter_result.status == "
    "wgpu::RequestAdapterStatus::Success was false. Failed to get a WebGPU adapter: No supported adapters\n\n"
)
LIBRARY = (
    "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 "
    "onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object file"
)
NODE = (
    '[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model. In Node, ("c1", Foo, "", -1) : ("x": '
    'tensor(float),"w1": tensor(float),) -> ("y": tensor(float),) , Error No Op registered for Foo with '
    "domain_version of 17"
)
RUN = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running ReorderInput node. Name:'reorder' "
    "Status Message: /onnxruntime_src/onnxruntime/contrib_ops/cpu/nchwc_ops.cc:27 virtual onnxruntime::common::Status "
    "onnxruntime::contrib::ReorderInput::Compute(onnxruntime::OpKernelContext*) const (channels % 4) == 0 was false. \n"
)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (PLUGIN, "Failed to get a WebGPU adapter: No supported adapters"),
        (
            LIBRARY,
            "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: "
            "cannot open shared object file",
        ),
        (NODE, "node 'c1': No Op registered for Foo with domain_version of 17"),
        (RUN, "node 'reorder': (channels % 4) == 0 was false"),
        ("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Protobuf parsing failed.", "Protobuf parsing failed"),
        ("", "RuntimeError"),
        ("Reshape (a plain remark) fails", "Reshape (a plain remark) fails"),
    ],
)
def test_codes_files_and_signatures_go(message: str, expected: str) -> None:
    assert sentence(RuntimeError(message)) == expected


def test_long_messages_are_cut_between_words() -> None:
    text = sentence(RuntimeError("word " * 1000))
    assert len(text) <= 403
    assert text.endswith("word...")


@pytest.mark.parametrize("letters", ["a", "./", "a.cc:"])
def test_names_of_any_length_are_read_in_one_go(letters: str) -> None:
    # Backtracking over 100,000 characters would take hours.
    said = sentence(RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : Node '{letters * 50_000}' is off"))
    assert said.startswith("Node")
    assert len(said) < 500
