"""Time, FLOPs and bytes of instructions, on texts in the formats of the compilers."""

import pytest

from invnext_jax.planning import costs, program
from invnext_jax.planning.devices import Device

DEVICE = Device(1e12, 1e11, 8e9, 1e10, 1e9, 8, 1e8, clock=1e9)

GPU = """\
HloModule gpu

%gemm (p.1: bf16[8,16], p.2: bf16[16,32]) -> f32[8,32] {
  %p.1 = bf16[8,16]{1,0} parameter(0)
  %p.2 = bf16[16,32]{1,0} parameter(1)
  ROOT %dot = f32[8,32]{1,0} dot(%p.1, %p.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%slice_update (q.1: f32[4,8,32], q.2: f32[12,100], q.3: s32[]) -> f32[4,8,32] {
  %q.1 = f32[4,8,32]{2,1,0} parameter(0)
  %q.2 = f32[12,100]{1,0} parameter(1)
  %q.3 = s32[] parameter(2)
  %part = f32[1,100]{1,0} dynamic-slice(%q.2, %q.3, %q.3), dynamic_slice_sizes={1,100}
  %update = f32[1,8,32]{2,1,0} broadcast(%part), dimensions={}
  ROOT %dus = f32[4,8,32]{2,1,0} dynamic-update-slice(%q.1, %update, %q.3, %q.3, %q.3)
}

ENTRY %main (a: bf16[8,16], b: bf16[16,32], c: f32[4,8,32], d: f32[12,100], e: s32[]) -> f32[8,32] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[16,32]{1,0} parameter(1)
  %c = f32[4,8,32]{2,1,0} parameter(2)
  %d = f32[12,100]{1,0} parameter(3)
  %e = s32[] parameter(4)
  %product = f32[8,32]{1,0} fusion(%a, %b), kind=kCustom, calls=%gemm
  %write = f32[4,8,32]{2,1,0} fusion(%c, %d, %e), kind=kLoop, calls=%slice_update
  %copy = f32[8,32]{1,0} copy(%product)
  %blas = f32[8,32]{1,0} custom-call(%c, %d), custom_call_target="__cublas$gemm",
 backend_config={"gemm_backend_config":{"dot_dimension_numbers":{
 "lhs_contracting_dimensions":["1"]}}}
  %attention = (bf16[2,3,6,64]{3,2,1,0}, u8[0]{0}) custom-call(%q, %k, %k),
 custom_call_target="__cudnn$fmhaSoftmax",
 backend_config={"intermediate_tensor_shape": {"dimensions": ["2", "3", "6", "100"]},
 "sliding_window_length": 0}
  %gather = f32[16,8]{1,0} all-gather(%copy), replica_groups={{0,1}}, dimensions={0}
  %later = (f32[8], f32[16]) all-gather-start(%copy), replica_groups={{0,1}}, dimensions={0}
  ROOT %done = f32[16] all-gather-done(%later)
}
"""


def find(text, **options):
    parsed = program.read_program(text)
    found = costs.estimate_costs(parsed, DEVICE, 2, 1e9)
    return parsed, {cost.instruction.name: cost for cost in found}


def test_bytes_are_those_read_and_written_and_slices_count_instead_of_their_operand():
    parsed, _ = find(GPU)
    arrays = parsed.operands("main")
    moved = {
        i.name: costs.count_bytes(parsed, i, [arrays.get(name, ()) for name in i.operands])
        for i in parsed.computations["main"]
    }
    assert moved["product"] == 2 * 8 * 16 + 2 * 16 * 32 + 4 * 8 * 32
    assert moved["write"] == 4 * 100 + 4 + 4 * 8 * 32  # slice, index, update
    assert moved["copy"] == 2 * 4 * 8 * 32


def test_flops_of_products_within_fusions_libraries_and_attention_kernels():
    parsed, _ = find(GPU)
    arrays = {**parsed.operands("main"), "q": (("bf16", (2, 6, 3, 64)),)}
    flops = {
        i.name: costs.count_flops(parsed, i, [arrays.get(name, ()) for name in i.operands])
        for i in parsed.computations["main"]
    }
    assert flops["product"] == {"float32": 0, "bfloat16": 2 * 8 * 32 * 16}
    assert flops["blas"] == {"float32": 2 * 8 * 32 * 8, "bfloat16": 0}
    assert flops["attention"] == {"float32": 0, "bfloat16": 4 * 2 * 3 * 6 * 100 * 64}
    assert flops["write"] == {"float32": 0, "bfloat16": 0}


def test_only_collectives_that_block_are_waited_for():
    _, found = find(GPU)
    assert found["gather"].basis == "link"
    assert found["gather"].seconds == pytest.approx(16 * 8 * 4 / 2 / 1e9)
    assert found["later"].basis == "overlapped"
    assert "done" not in found and "a" not in found
    sync = GPU.replace("dimensions={0}\n  ROOT", 'dimensions={0}, x={"is_sync":true}\n  ROOT')
    assert find(sync)[1]["later"].basis == "link"


TPU = """\
HloModule tpu

ENTRY %main (a: bf16[8,16]) -> bf16[8,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %fusion = bf16[8,16]{1,0} fusion(%a), kind=kLoop, calls=%x,
 backend_config={"window_config":{"estimated_cycles":"3000"}}
  %mask = s8[1,4,2]{2,1,0} constant({...})
  %q = bf16[2,3,128,512]{3,2,1,0} constant({...})
  %fwd = (f32[2,3,512], bf16[2,3,512,128]) custom-call(%mask, %mask, %q, %q, %q),
 custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128, \\"block_kv\\": 128, \\"block_kv_dkv\\": 256}"
}}, metadata={op_name="attn/splash_mha_fwd_segmented/pallas_call"}
  %prefetch = ((s8[8192]{0}), s8[4096]{0:S(1)}, s32[]) slice-start(%a), slice={[0:4096]}
  %fetched = s8[4096]{0:S(1)} slice-done(%prefetch)
  %joined = bf16[8,16]{1,0:S(1)} custom-call(%fetched, %fetched), custom_call_target="ConcatBitcast"
  ROOT %buffer = bf16[8,16]{1,0} custom-call(), custom_call_target="AllocateBuffer"
}
"""


def test_tpu_fusions_have_the_cycles_of_the_compiler():
    parsed, found = find(TPU.replace("calls=%x,", ""))
    assert found["fusion"].seconds == pytest.approx(3e-6)
    assert found["fusion"].basis == "compiler"
    assert "buffer" not in found


def test_copies_to_fast_memory_overlap_with_computation():
    _, found = find(TPU.replace("calls=%x,", ""))
    assert set(found) == {"fusion", "fwd"}


@pytest.mark.parametrize(
    ("kind", "pairs", "products"),
    [("fwd", 512 * 256, 4), ("dq", 512 * 256, 6), ("dkv", 512 * 512, 8)],
)
def test_splash_attention_counts_the_tiles_of_its_grid(kind, pairs, products):
    text = TPU.replace("splash_mha_fwd", f"splash_mha_{kind}")
    if kind == "dq":
        text = text.replace("block_kv_dkv", "block_kv_dq").replace("256}", "128}")
    parsed, _ = find(text)
    (kernel,) = (i for i in parsed.computations["main"] if i.name == "fwd")
    arrays = parsed.operands("main")
    flops = costs.count_flops(parsed, kernel, [arrays[name] for name in kernel.operands])
    assert flops["bfloat16"] == products * 2 * 3 * pairs * 128
    assert costs.attention_kernel(kernel) == f"splash_{kind}"
