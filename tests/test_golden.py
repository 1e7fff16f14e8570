"""Golden cases: results equal those of the reference implementation.

Another folder of cases is checked by `pytest tests/test_golden.py --golden-dir=DIR`.

The file is longer than 300 lines because all cases share the helpers that read them.
"""

from types import SimpleNamespace

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from golden_cases import DEFAULT, assert_near, mask_indices, read_cases

from invnext_jax.models import decoder, encoder, predictor, scan, teachers
from invnext_jax.models.heads import AttentionPool
from invnext_jax.models.layers import ProjectionHead
from invnext_jax.models.patches import clip_grid
from invnext_jax.models.positions import resize_table, sincos_table
from invnext_jax.objectives import diffusion, losses, masks, reconstruction
from invnext_jax.stages.masked_modeling import MaskSample
from invnext_jax.stages.registry import STAGES
from invnext_jax.training.optimizer import decay_mask, make_optimizer, make_schedule
from invnext_jax.weights.files import LazyArrays, LazyTensor
from invnext_jax.weights.image_models import FAMILIES
from invnext_jax.weights.layout import pytorch_names, to_tree
from invnext_jax.weights.match import match_tree
from invnext_jax.weights.reference import PRETRAINING

stage1, stage2 = STAGES["stage1"], STAGES["stage2"]

# A test reads only cases of its kind that have this tensor.
NEEDS = {"test_diffusion_sampling": "in.loop.z", "test_masking": "in.attn", "test_optim": "out.lr"}


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        cases = cases_of(metafunc.function.__name__, folder_of(metafunc.config))
        metafunc.parametrize("case", cases, ids=lambda case: case.name)


def folder_of(pytest_config):
    return pytest_config.getoption("--golden-dir") or DEFAULT


def cases_of(test, folder):
    cases = [c for name, c in read_cases(folder).items() if name.startswith(test.split("_")[1])]
    return [c for c in cases if NEEDS.get(test) in (None, *c.tensors)]


def test_every_case_is_read_by_a_test(pytestconfig):
    folder = folder_of(pytestconfig)
    tests = [
        name for name, test in globals().items() if name.startswith("test_") and callable(test)
    ]
    read = {case.name for test in tests for case in cases_of(test, folder)}
    assert read and read == set(read_cases(folder))


def params_of(case, prefix="param."):
    return to_tree(case.under(prefix), PRETRAINING)


def assert_gradients(grads, case, relative=1e-3):
    flat = flax.traverse_util.flatten_dict(grads, sep="/")
    sources = dict(pytorch_names({path: leaf.shape for path, leaf in flat.items()}, PRETRAINING))
    expected = case.under("grad.")
    assert_near(losses.tree_norm(grads), expected.pop("global_norm"), relative)
    assert expected
    for name, gradient in expected.items():
        name = f"diffloss.{name}" if name.startswith("net.") else name  # a separate decoder
        assert_near(sources[name].to_pytorch(flat[sources[name].path]), gradient, relative)


def test_encoder(case):
    config, params = case.config_of_run(), params_of(case)
    depth = config.encoder.depth
    model = encoder.from_config(config, range(1, depth + 1))
    pool = AttentionPool(config.encoder.pool_width, config.encoder.pool_heads, jnp.float32)
    keep_bk, _ = mask_indices(case["in.mask"])
    for variant, keep in (("nomask", None), ("mask", keep_bk)):
        out = model.apply({"params": params["encoder"]}, case.video, keep)
        for i in range(depth):
            assert_near(out.taps_lbnd[i], case[f"out.{variant}.block{i}"])
        assert_near(out.tokens_bnd, case[f"out.{variant}.x"])
        pooled = pool.apply({"params": params["pool"]}, out.tokens_bnd)
        assert_near(pooled, case[f"out.{variant}.clip_projector"])
    patches = encoder.patchify(case.video, config.encoder.patch)
    embed = encoder.PatchEmbed(config.encoder.width, jnp.float32)
    tokens = embed.apply({"params": params["encoder"]["patch_embed"]}, patches)
    frames = case.video.shape[1]
    assert_near(rearrange(tokens, "b (t s) d -> b t s d", t=frames), case["out.patch_embed"])


def test_pos_embed(case):
    c = case.config
    grid = (c["frames"], c["grid"], c["grid"])
    assert_near(sincos_table(c["embed"], grid, c["cls"]), case["out.table"][0], 1e-6)
    wanted = {
        "frames": lambda: (c["new_frames"], c["grid"]),
        "grid": lambda: (c["frames"], c["new_grid"]),
        "both": lambda: (c["new_frames"], c["new_grid"]),
        "frames_down": lambda: (c["frames_down"], c["grid"]),
    }
    for name, expanded in case.under("out.expand_").items():
        frames, side = wanted[name]()
        resized = resize_table(case["in.learned"][0], grid, (frames, side, side), c["cls"])
        assert_near(resized, expanded[0])
    if "base" in c:
        check_large_table(case, c["base"])


def check_large_table(case, base):
    c = case.config
    table = sincos_table(base["embed"], (base["frames"], base["grid"], base["grid"]), c["cls"])
    assert list(table.shape) == base["shape"]
    assert_near(table[tuple(case["base.index"].T)], case["base.value"], 1e-6)
    wide = table.astype(np.float64)
    for name, value in (
        ("sum", wide.sum()),
        ("abs_sum", np.abs(wide).sum()),
        ("sq_sum", (wide**2).sum()),
    ):
        np.testing.assert_allclose(value, case[f"base.{name}"], rtol=1e-6)


def test_predictor(case):
    config = case.config_of_run()
    keep_bk, masked_bm = mask_indices(case["in.mask"])
    side = config.encoder.size // config.encoder.patch
    model = predictor.from_config(config)
    latents_bmd, state = model.apply(
        {"params": params_of(case)["predictor"]},
        case["in.x"],
        keep_bk,
        masked_bm,
        (config.encoder.frames, side, side),
        mutable="intermediates",
    )
    seen = state["intermediates"]
    assert_near(seen["sequence"][0], case["out.sequence"])
    assert_near(seen["projected"][0], case["out.to_bert_proj"])
    first = config.predictor.last_layer - config.predictor.depth + 1
    for i in range(config.predictor.depth - 1):  # the last layer returns only masked tokens
        assert_near(seen[f"after{i}"][0], case[f"out.layer{first + i}"])
    final_bnd = case[f"out.layer{config.predictor.last_layer}"][:, config.encoder.class_tokens :]
    assert_near(latents_bmd, np.take_along_axis(final_bnd, masked_bm[:, :, None], axis=1))


def test_diffusion(case):
    c, params = case.config, params_of(case)["decoder"]
    model = decoder.DiffusionDecoder(c["target_channels"], c["width"], c["depth"])
    schedule = diffusion.cosine_schedule()
    check_tables(schedule, case)
    x, t, noise, z = (case[f"in.{name}"] for name in ("x_start", "t", "noise", "z"))
    t = t.astype(np.int32)

    def loss(params, z):
        noised = diffusion.add_noise(schedule, x, t, noise)
        output = model.apply({"params": params}, noised, t, z)
        terms = diffusion.loss_terms(schedule, output, x, noised, t, noise)
        return jnp.mean(terms.squared_error + terms.bound), (noised, output, terms)

    graded = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (mean, (noised, output, terms)), grads = graded(params, z)
    assert_near(noised, case["out.x_t"])
    assert_near(output, case["out.net"])
    np.testing.assert_allclose(terms.squared_error, case["out.loss.mse"], rtol=1e-5)
    np.testing.assert_allclose(terms.bound, case["out.loss.vb"], rtol=1e-4)
    np.testing.assert_allclose(mean, case["out.loss_mean"], rtol=1e-5)
    assert_near(grads[1], case.tensors.pop("grad.z"), 1e-3)
    assert_gradients({"decoder": grads[0]}, case)
    belief = diffusion.posterior(schedule, case["out.net"], noised, t)
    assert_near(belief.mean, case["out.p.mean"])
    assert_near(belief.start, case["out.p.pred_xstart"])
    np.testing.assert_allclose(belief.log_variance, case["out.p.log_variance"], rtol=1e-4)
    np.testing.assert_allclose(jnp.exp(belief.log_variance), case["out.p.variance"], rtol=1e-3)


def check_tables(schedule, case):
    alphas = schedule.alphas_cumprod
    ours = {
        "betas": schedule.betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": np.concatenate([[1.0], alphas[:-1]]),
        "posterior_variance": schedule.posterior_variance,
        "posterior_log_variance_clipped": schedule.posterior_log_variance,
        "posterior_mean_coef1": schedule.posterior_start,
        "posterior_mean_coef2": schedule.posterior_noised,
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / alphas),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alphas - 1),
    }
    expected = case.under("table.")
    for name, table in expected.items():
        np.testing.assert_allclose(ours[name], table, rtol=1e-9, err_msg=name)


def test_diffusion_sampling(case):
    c, params = case.config, params_of(case)["decoder"]
    model = decoder.DiffusionDecoder(c["target_channels"], c["width"], c["depth"])
    steps = len(case["respaced.timestep_map"])
    short = diffusion.respace_schedule(diffusion.cosine_schedule(), steps)
    np.testing.assert_array_equal(short.timesteps, case["respaced.timestep_map"])
    np.testing.assert_allclose(short.betas, case["respaced.betas"], rtol=1e-9)

    def denoise(x, t):
        return model.apply({"params": params}, x, t, case["in.loop.z"])

    noises, init = case["in.loop.noises"], case["in.loop.init"]
    expected = case.under("out.loop.samples.temp")
    assert expected
    for temperature, samples in expected.items():
        assert_near(diffusion.sample(denoise, short, noises, init, float(temperature)), samples)


def test_siglip(case):
    c = case.config
    family = FAMILIES["siglip2"]
    tensors = {k: LazyTensor(v.shape, lambda v=v: v) for k, v in case.under("param.").items()}
    params = to_tree(LazyArrays(family.adapt(tensors)), family.rules)
    taps = scan.select_tap_layers(c["layers"], c["K"], c["interval"])
    assert taps == tuple(sorted(c["return_index"]))
    model = teachers.SigLip2(
        width=c["hidden"],
        depth=c["layers"],
        heads=c["heads"],
        mlp_width=c["intermediate"],
        patch=c["patch"],
        size=c["train_resolution"],
        taps=taps,
    )
    images = teachers.preprocess(case.video, c["input_resolution"], "siglip2")
    assert_near(np.moveaxis(images, -1, 1), case["out.frames"])
    out = model.apply({"params": params}, images)
    assert_near(out.taps_lbnd, case["out.middle"])
    assert_near(out.pooled_bd, case["out.pooled"])
    assert_near(out.attention_bn, case["out.attn"])
    frames = case["in.video"].shape[2]
    pooled = rearrange(out.pooled_bd, "(b t) d -> b t d", t=frames).mean(axis=1)
    assert_near(pooled, case["out.final_video"])


def test_stage1(case):
    config, params = case.config_of_run(), params_of(case)
    ratios, config.loss = config.loss, dict.fromkeys(config.loss, 1.0)  # all terms
    model = stage1.make_model(config)
    final = ProjectionHead(case.config["model"]["clip_teacher_final_dim"], True, jnp.float32)
    model = model.clone(align_pooled=final)
    shapes = jax.eval_shape(lambda key: stage1.init_params(config, model, key), jax.random.key(0))
    params = match_tree(params, nn.unbox(shapes), case.name)
    keep_bk, masked_bm = mask_indices(case["in.mask"])
    noise = reconstruction.Noise(case["in.noise"], case["in.t"].astype(np.int32))
    draws = MaskSample(keep_bk, masked_bm, noise)
    seen = teachers.TeacherOutput(
        case["in.teacher_middle"], case["in.teacher_final"], case["in.teacher_attn"]
    )

    def loss(params):
        terms = stage1.loss_terms(config, model, params, seen, case.video, [draws])
        return sum(ratio * terms[name] for name, ratio in ratios.items()), terms

    @jax.jit
    def everything(params):
        features = model.apply(
            {"params": params}, case.video, keep_bk, masked_bm, method="features"
        )
        return features, jax.value_and_grad(loss, has_aux=True)(params)

    features, ((total, terms), grads) = everything(params)
    assert_near(features.aligned_lbkd, case["out.student_middle"])
    assert_near(features.pooled_bd, case["out.student_final"])
    np.testing.assert_allclose(terms["align_tokens"], case["out.loss_clip_middle"], rtol=1e-5)
    np.testing.assert_allclose(terms["align_pooled"], case["out.loss_clip_final"], rtol=1e-5)
    np.testing.assert_allclose(terms["pixels"], case["out.loss_diffusion"], rtol=1e-5)
    np.testing.assert_allclose(total, case["out.loss"], rtol=1e-5)
    assert_gradients(grads, case)


def test_stage1_pixels_in_bfloat16_and_in_chunks(case):
    config, params = case.config_of_run(), params_of(case)
    noise = reconstruction.Noise(case["in.noise"], case["in.t"].astype(np.int32))
    draws = MaskSample(*mask_indices(case["in.mask"]), noise)
    config.loss = {"align_tokens": 0.0, "align_pooled": 0.0, "pixels": 1.0}
    found = {}
    for dtype, chunks in (("float32", 1), ("bfloat16", 1), ("float32", 3)):
        config.decoder.dtype, config.decoder.chunks = dtype, chunks
        model = stage1.make_model(config)

        def loss(params, model=model):
            return stage1.loss_terms(config, model, params, None, case.video, [draws])["pixels"]

        found[dtype, chunks] = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(found["bfloat16", 1][0], case["out.loss_diffusion"], rtol=1e-3)
    np.testing.assert_allclose(found["float32", 3][0], found["float32", 1][0], rtol=1e-6)
    whole, parts = (losses.tree_norm(found["float32", n][1]["decoder"]) for n in (1, 3))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_stage2(case):
    config = case.config_of_run(case.config.get("frames"))
    config.loss = {"predict": 1.0, "align_visible": 0.0, "pixels": 0.0}
    params, frozen = params_of(case), {"target": params_of(case, "teacher.")["encoder"]}
    model = stage2.make_model(config)
    shapes = jax.eval_shape(lambda key: stage2.init_params(config, model, key), jax.random.key(0))
    shapes.pop("pool")  # no loss depends on it, and the cases lack it
    params = match_tree(params, nn.unbox(shapes), case.name)
    drawn = [MaskSample(*mask_indices(case[f"in.mask_v{i}"])) for i in (1, 2)]

    def loss(params):
        target = stage2.compute_target(config, model, frozen, None, case.video)
        terms = stage2.loss_terms(config, model, params, target, case.video, drawn)
        return stage2.weigh(config, terms), terms

    @jax.jit
    def everything(params):
        tokens = model.encoder.apply({"params": frozen["target"]}, case.video).tokens_bnd
        predicted = [
            model.apply(
                {"params": params}, case.video, draws.keep_bk, draws.masked_bm, method="features"
            ).predicted_bmd
            for draws in drawn
        ]
        return tokens, predicted, jax.value_and_grad(loss, has_aux=True)(params)

    tokens, predicted, ((total, terms), grads) = everything(params)
    assert_near(tokens[:, config.encoder.class_tokens :], case["out.teacher_tokens"])
    for i in range(len(drawn)):
        assert_near(predicted[i], case[f"out.student_v{i + 1}"])
        expected = case[f"out.loss_v{i + 1}"]
        np.testing.assert_allclose(terms[f"predict_{i}"], expected, rtol=1e-5)
    np.testing.assert_allclose(total, case["out.loss"], rtol=1e-5)
    assert clip_grid(case.video, config.encoder.patch)[0] == config.data.frames
    assert_gradients(grads, case)


def test_masking(case):
    settings = case.config["semantic"]
    attention_bs = case["in.attn"]
    visible = masks.visible_per_frame(settings["N"], settings["mask_ratio"])
    assert visible == settings["n_visible"]
    draws = settings["draws"]
    attention = jnp.broadcast_to(attention_bs[None], (draws, *attention_bs.shape))
    [(keep_bk, masked_bm)] = masks.semantic_masks(
        jax.random.key(0),
        draws,
        (attention.shape[1], 1, attention.shape[2]),
        SimpleNamespace(ratio=settings["mask_ratio"]),
        attention,
    )
    places_bn = jnp.sort(jnp.concatenate([keep_bk, masked_bm], axis=1), axis=1)
    assert (places_bn == jnp.arange(attention_bs.size)[None]).all()
    counts = np.bincount(np.asarray(keep_bk).ravel(), minlength=attention_bs.size) / draws
    expected = case["out.inclusion_frequency"]
    # Both frequencies are binomial. The tolerance is five standard errors of their difference.
    error = 5 * np.sqrt(2 * expected * (1 - expected) / draws) + 1e-4
    assert (np.abs(counts.reshape(expected.shape) - expected) < error).all()


def test_optim(case):
    c = case.config
    config = SimpleNamespace(
        learning_rate=c["base_lr"],
        min_learning_rate=c["min_lr"],
        warmup_steps=c["warmup_epochs"] * c["steps_per_epoch"],
        betas=c["betas"],
        eps=c["eps"],
        weight_decay=c["weight_decay"],
        clip_norm=c["clip"],
        frozen=(),
    )
    total = c["epochs"] * c["steps_per_epoch"]
    rates = jax.vmap(make_schedule(config, total))(jnp.arange(total))
    np.testing.assert_allclose(rates, case["out.lr"], rtol=1e-5, atol=1e-9)
    check_updates(case, config)


def check_updates(case, config):
    # The case has its own learning rates. Clipping and AdamW are those of this package.
    shapes = case.config["toy_shapes"]
    # One-dimensional tensors have no weight decay, so they are named like a bias.
    names = ["bias" if len(shape) == 1 else "kernel" for shape in shapes]
    params = {f"p{i}": {name: case[f"in.p{i}"]} for i, name in enumerate(names)}
    rates = jnp.asarray(case["in.lrs"])
    tx = make_optimizer(config)
    state = tx.init(params)
    for step in range(len(rates)):
        grads = {f"p{i}": {name: case[f"in.grad{i}.step{step}"]} for i, name in enumerate(names)}
        assert_near(losses.tree_norm(grads), case["out.grad_norms"][step])
        updates, state = tx.update(grads, state, params, learning_rate=rates[step])
        params = optax.apply_updates(params, updates)
        for i, name in enumerate(names):
            if f"out.p{i}.after{step + 1}" in case.tensors:
                assert_near(params[f"p{i}"][name], case[f"out.p{i}.after{step + 1}"], 1e-5)


def test_optim_groups(case):
    for groups in case.config["groups"].values():
        for decays in (True, False):
            names = groups["decay" if decays else "no_decay"]
            unused = ("bert_decoder.embeddings", "bert_decoder.final_norm", "selfdist_normproj")
            names = [n for n in names if not n.startswith((*unused, "selfdist_proj_clip"))]
            state = {
                name: np.zeros((3, 3, 1, 1, 1) if "conv" in name else (6, 6)) for name in names
            }
            state |= {n: np.zeros((3, 3, 1, 2, 2)) for n in names if n == "patch_embed.proj.weight"}
            mask = decay_mask(to_tree(state, PRETRAINING))
            assert all(flag == decays for flag in jax.tree.leaves(mask)), (groups, decays)
