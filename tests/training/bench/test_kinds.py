"""Kernels and ranges by the names that CUDA's libraries, Inductor and torch give them."""

from __future__ import annotations

import pytest

from triax.training.bench.kinds import Kind, kind_of_kernel, kind_of_range

_ELEMENTWISE = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::BinaryFunctor<float, float, "
    "float, at::native::binary_internal::MulFunctor<float> >, std::array<char*, 3ul> >(int, ...)"
)
_MULTI_TENSOR = (
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous "
    "namespace)::TensorListMetadata<2>, at::native::(anonymous namespace)::{}>(...)"
)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Kind.GEMM, "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNN"),
        (Kind.GEMM, "nvjet_qqtst_128x256_128x4_2x1_v_bz_TNT"),
        (Kind.GEMM, "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_execute_kernel"),
        (Kind.GEMM, "ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_nt"),
        (Kind.GEMM, "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16>(...)"),
        (Kind.GEMM, "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>(...)"),
        (Kind.GEMM, "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<"
                    "cutlass::gemm::kernel::GemmUniversal<...> > >(...)"),
        (Kind.GEMM, "triton_tem_fused_mm_t_3"),
        (Kind.GEMM, "aten::addmm"),
        (Kind.ATTENTION, "void flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, ...> >"),
        (Kind.ATTENTION, "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>"),
        (Kind.ATTENTION, "void pytorch_flash::flash_bwd_convert_dq_kernel<...>"),
        (Kind.ATTENTION, "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwd<>"),
        (Kind.ATTENTION, "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_..."),
        (Kind.ATTENTION, "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_3_..."),
        (Kind.ATTENTION, "void cudnn::fusion::compute_dot_do_o_specialized<true, __nv_bfloat16>()"),
        (Kind.LOSS, "triton_red_fused__log_softmax_nll_loss_forward_3"),
        (Kind.ATTENTION, "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::...)"),
        (Kind.ATTENTION, "triton_tem_fused_flex_attention_0"),
        (Kind.ATTENTION, "aten::_scaled_dot_product_flash_attention_for_cpu_backward"),
        (Kind.COMMUNICATION, "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgs...)"),
        (Kind.COMMUNICATION, "gloo:all_reduce"),
        (Kind.COMMUNICATION, "_c10d_functional::wait_tensor"),
        (Kind.OPTIMIZER, _MULTI_TENSOR.format("FusedAdamMathFunctor<float, 4, ...>")),
        (Kind.OPTIMIZER, _MULTI_TENSOR.format("LpNormFunctor<float, (NormType)1, float>")),
        (Kind.OPTIMIZER, "aten::_foreach_mul_"),
        (Kind.ELEMENTWISE, _ELEMENTWISE),
        (Kind.ELEMENTWISE, "triton_poi_fused__scaled_dot_product_flash_attention_mul_silu_1"),
        (Kind.ELEMENTWISE, "triton_red_fused__fused_rms_norm_add_mm_2"),
        (Kind.ELEMENTWISE, "triton_per_fused__to_copy_mm_sum_4"),
        (Kind.ELEMENTWISE, "void at::native::(anonymous namespace)::CatArrayBatchedCopy<...>"),
    ],
)  # fmt: skip
def test_a_kernel_s_name_says_what_it_does(kind: Kind, name: str) -> None:
    assert kind_of_kernel(name, None) == kind


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Kind.LOSS, "_ChunkedCrossEntropy"),
        (Kind.LOSS, "autograd::engine::evaluate_function: _ChunkedCrossEntropyBackward"),
        (Kind.LOSS, "aten::cross_entropy_loss"),
        (Kind.LOSS, "autograd::engine::evaluate_function: LogSoftmaxBackward0"),
        (Kind.OPTIMIZER, "Optimizer.step#AdamW.step"),
        (Kind.OPTIMIZER, "Optimizer.zero_grad#AdamW.zero_grad"),
        (Kind.COPIES, "FSDP::post_backward_reduce (blocks.0)"),
        (None, "autograd::engine::evaluate_function: MmBackward0"),
        (None, "triax::step"),
    ],
)
def test_a_range_of_the_host_says_what_it_is_for(kind: Kind | None, name: str) -> None:
    assert kind_of_range(name) == kind


def test_the_range_decides_about_what_the_name_does_not() -> None:
    copy = _MULTI_TENSOR.format("Copy<float, c10::BFloat16>")
    assert kind_of_kernel(copy, Kind.COPIES) == Kind.COPIES
    assert kind_of_kernel(_ELEMENTWISE, Kind.LOSS) == Kind.LOSS
    assert kind_of_kernel("nvjet_tst_128x256", Kind.LOSS) == Kind.GEMM
    assert kind_of_kernel("ncclDevKernel_AllGather_RING_LL", Kind.COPIES) == Kind.COMMUNICATION
