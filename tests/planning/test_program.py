"""Parser of compiled programs, on texts in the formats of the compilers and on a CPU program."""

import jax
import jax.numpy as jnp
import pytest

from invnext_jax.planning import program as program_lib

# A loop with the number of iterations in its condition, as in programs for TPUs.
TEXT = """\
HloModule jit_step, is_scheduled=true

FileNames
1 "/home/me/run.py"
2 "/home/me/invnext_jax/models/layers.py"
3 "/home/me/flax/linear.py"

FunctionNames
1 "main"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=2 end_column=6}
2 {file_name_id=2 function_name_id=1 line=42 end_line=42 column=2 end_column=6}
3 {file_name_id=3 function_name_id=1 line=9 end_line=9 column=2 end_column=6}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}


%fused (p.1: bf16[8,16], p.2: f32[4,16,16]) -> f32[8,16] {
  %p.1 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %p.2 = f32[4,16,16]{2,1,0} parameter(1)
  ROOT %dot.1 = f32[8,16]{1,0} dot(%p.1, %p.2), metadata={op_name="a/dot" stack_frame_id=3}
}

%body (arg.1: (s32[], bf16[8,16], /*index=2*/f32[4,16,16])) -> (s32[], bf16[8,16], f32[4,16,16]) {
  %arg.1 = (s32[]{:T(128)}, bf16[8,16]{1,0}, /*index=2*/f32[4,16,16]{2,1,0}) parameter(0)
  %x = bf16[8,16]{1,0} get-tuple-element(%arg.1), index=1
  %w = f32[4,16,16]{2,1,0} get-tuple-element(%arg.1), index=2
  %kernel = (f32[8]{0:S(1)}, bf16[8,16]{1,0}) custom-call(%x, /*index=1*/%w),
 custom_call_target="k", x={x={
"blocks":"1"
}}, metadata={op_name="a/kernel"}
  %fusion.1 = f32[8,16]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused
  ROOT %tuple = (s32[], bf16[8,16]{1,0}, f32[4,16,16]{2,1,0}) tuple(%x, %x, %w)
}

%condition (arg.2: (s32[], bf16[8,16], f32[4,16,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %arg.2 = (s32[], bf16[8,16]{1,0}, f32[4,16,16]{2,1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%arg.2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

ENTRY %main (a: bf16[8,16]) -> bf16[8,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %start = (s32[], bf16[8,16]{1,0}) tuple(%a, %a)
  %loop = (s32[], bf16[8,16]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %out = bf16[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.fixture(scope="module")
def program():
    return program_lib.read_program(TEXT)


def test_instructions_have_arrays_operands_and_attributes(program):
    kernel = next(i for i in program.computations["body"] if i.name == "kernel")
    assert kernel.opcode == "custom-call"
    assert kernel.results == (("f32", (8,)), ("bf16", (8, 16)))
    assert kernel.operands == ("x", "w")
    assert '"blocks":"1"' in kernel.attributes and kernel.op_name == "a/kernel"
    assert [i.name for i in program.computations["body"] if i.is_root] == ["tuple"]
    assert program.operands("main")["loop"] == (("s32", ()), ("bf16", (8, 16)))


def test_loops_are_counted_and_instructions_within_fusions_are_not_scheduled(program):
    assert program.entry == "main"
    assert program.executions == {"fused": 12, "body": 12, "condition": 12, "main": 1}
    assert program.scheduled == {"body": 12, "condition": 12, "main": 1}
    times = {i.name: count for i, count in program.instructions()}
    assert times["fusion.1"] == 12 and times["loop"] == 1 and "dot.1" not in times
    assert program.unknown_loops == []


def test_number_of_iterations_from_the_compiler_precedes_the_condition():
    config = ', backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0"}}'
    text = TEXT.replace("body=%body", "body=%body" + config)
    assert program_lib.read_program(text).scheduled["body"] == 5


def test_loop_of_unknown_length_counts_once_and_is_listed():
    program = program_lib.read_program(TEXT.replace("direction=LT", "direction=NE"))
    assert program.scheduled["body"] == 1
    assert program.unknown_loops == ["loop"]


def test_source_is_the_innermost_line_of_the_package(program):
    (fusion,) = (i for i in program.computations["body"] if i.opcode == "fusion")
    assert program.source(fusion, "invnext_jax") == "invnext_jax/models/layers.py:42"
    assert program.op_name(fusion) == "a/dot"
    assert program.source(program.computations["main"][0], "invnext_jax") == ""


def test_bytes_of_arrays():
    arrays = (("bf16", (8, 16)), ("pred", (3,)), ("s4", (3,)), ("f32", ()), ("token", ()))
    assert program_lib.array_bytes(arrays) == 256 + 3 + 2 + 4  # 1.5 bytes are rounded up
    assert program_lib.type_bits("f8e4m3fn") == 8


def test_program_for_cpus():
    def layer(x_bd, w_dd):
        return jnp.tanh(x_bd @ w_dd), None

    def apply(x_bd, w_ldd):
        return jax.lax.scan(layer, x_bd, w_ldd)[0]

    compiled = jax.jit(apply).lower(jnp.ones((8, 16)), jnp.ones((7, 16, 16))).compile()
    program = program_lib.read_program(compiled.as_text())
    products = [
        (times, i)
        for name, times in program.executions.items()
        for i in program.computations[name]
        if i.opcode == "dot" or "dot_general" in i.op_name
    ]
    assert {times for times, _ in products} == {7}
    assert (("f32", (8, 16)),) in [i.results for _, i in products]
    assert program.source(products[0][1], "planning").startswith("planning/test_program.py:")
