import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from invnext_jax.planning import collectives, program
from invnext_jax.planning.collectives import Collective
from invnext_jax.training import mesh as mesh_lib

MESH = ml_collections.ConfigDict({"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1})


def test_bytes_depend_on_shapes_executions_and_group_size():
    gather = Collective("all-gather", (("bf16", (8, 16)),), 12, 4, "")
    assert gather.result_bytes == 256
    assert gather.sent_bytes == 12 * 256 * 3 / 4
    reduce = Collective("all-reduce", (("f32", (8,)), ("f32", ())), 1, 4, "")
    assert reduce.result_bytes == 36
    assert reduce.sent_bytes == 2 * 36 * 3 / 4
    assert Collective("reduce-scatter", (("f32", (8,)),), 1, 4, "").sent_bytes == 3 * 32
    assert Collective("all-to-all", (("pred", (8,)),), 1, 4, "").sent_bytes == 6


def test_outputs_of_started_collectives_are_their_results():
    text = """\
ENTRY %main (a: f32[8]) -> f32[8] {
  %one = ((f32[64], bf16[8]), (f32[16], bf16[2])) reduce-scatter-start(%a),
 replica_groups={{0,1,2,3}}
  %two = (f32[8], f32[16]) all-gather-start(%a), replica_groups={{0,1},{2,3}}
  %three = (f32[8], f32[8], u32[], u32[]) collective-permute-start(%a)
  ROOT %four = f32[8] all-reduce-start(%a), replica_groups={{0,1,2,3}}
}
"""
    used = collectives.read_collectives(program.read_program(text), 4)
    assert [c[:4] for c in used] == [
        ("reduce-scatter", (("f32", (16,)), ("bf16", (2,))), 1, 4),
        ("all-gather", (("f32", (16,)),), 1, 2),
        ("collective-permute", (("f32", (8,)),), 1, 4),
        ("all-reduce", (("f32", (8,)),), 1, 4),
    ]


def test_fusion_of_a_reduction_and_a_slice_is_a_reduce_scatter():
    text = """\
%all-reduce-scatter.5 (input: bf16[64,8]) -> bf16[16,8] {
  %input = bf16[64,8]{1,0} parameter(0)
  %all-reduce = bf16[64,8]{1,0} all-reduce(%input), replica_groups={{0,1,2,3}}
  ROOT %slice = bf16[16,8]{1,0} dynamic-slice(%all-reduce, %input), dynamic_slice_sizes={16,8}
}

ENTRY %main (a: bf16[64,8]) -> bf16[16,8] {
  %a = bf16[64,8]{1,0} parameter(0)
  ROOT %fusion = bf16[16,8]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.5
}
"""
    used = collectives.read_collectives(program.read_program(text), 8)
    assert [c[:4] for c in used] == [("reduce-scatter", (("bf16", (16, 8)),), 1, 4)]
    assert used[0].sent_bytes == 3 * 16 * 8 * 2


def test_gather_in_a_loop_counts_once_per_iteration():
    mesh = mesh_lib.make_mesh(MESH)
    split = NamedSharding(mesh, P("fsdp"))
    replicated = NamedSharding(mesh, P(None, None))

    def apply(x_bd, w_ldd):
        def layer(x_bd, w_dd):
            x_bd = jax.lax.with_sharding_constraint(jnp.tanh(x_bd @ w_dd), replicated)
            return jax.lax.with_sharding_constraint(jnp.cumsum(x_bd, axis=0), split), None

        return jax.lax.scan(layer, x_bd, w_ldd)[0]

    x_bd = jax.ShapeDtypeStruct((12, 24), np.float32, sharding=split)
    w_ldd = jax.ShapeDtypeStruct((5, 24, 24), np.float32, sharding=NamedSharding(mesh, P()))
    compiled = jax.jit(apply).lower(x_bd, w_ldd).compile()
    used = collectives.read_collectives(program.read_program(compiled.as_text()), 8)
    assert [c[:4] for c in used] == [("all-gather", (("f32", (12, 24)),), 5, 4)]
