"""A PyTorch training step with the same shapes, built from `transformers` modules.

Encoder, predictor and teacher use the layers of VideoMAE, ModernBERT and SigLIP. The rest consists
of plain torch modules. The encoder has no layer scale and no q/k norm, which makes the PyTorch step
slightly cheaper.

The file is long because it has one class per module of the model. Shape key: b batch, t frames,
h w pixels, c channels, n tokens, k kept tokens, m masked tokens, p pixels of a patch, d width,
z latent width.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from torch import nn  # noqa: E402
from transformers import (  # noqa: E402
    ModernBertConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    VideoMAEConfig,
)
from transformers.models.modernbert import modeling_modernbert as modernbert  # noqa: E402
from transformers.models.videomae.modeling_videomae import VideoMAELayer  # noqa: E402

from invnext_jax.objectives import reconstruction  # noqa: E402

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Head(nn.Module):
    """MLP head: linear, GELU, linear, layer norm and optional L2 normalization."""

    def __init__(self, width, out, *, normalize):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, out)
        self.norm, self.normalize = nn.LayerNorm(out), normalize

    def forward(self, x):
        """Maps [... width] to [... out]."""
        x = self.norm(self.fc2(F.gelu(self.fc1(x))))
        return F.normalize(x, dim=-1) if self.normalize else x


class Encoder(nn.Module):
    """Encoder of the visible patches, made of VideoMAE's layers."""

    def __init__(self, e):
        super().__init__()
        self.e = e
        config = VideoMAEConfig(
            hidden_size=e.width,
            num_hidden_layers=e.depth,
            num_attention_heads=e.heads,
            intermediate_size=e.mlp_width,
            hidden_act="gelu_pytorch_tanh",
            attn_implementation="sdpa",
        )
        side = e.size // e.patch
        self.embed = nn.Linear(3 * e.patch**2, e.width)
        self.classes = nn.Parameter(0.02 * torch.randn(1, e.class_tokens, e.width))
        n = e.frames * side**2 + e.class_tokens
        self.position = nn.Parameter(0.02 * torch.randn(1, n, e.width))
        self.layers = nn.ModuleList(VideoMAELayer(config) for _ in range(e.depth))

    def forward(self, patches, keep=None, taps=0):
        """Maps patches [b n p] and kept indices [b k] to tokens and the last layers' outputs."""
        c = self.e.class_tokens
        if keep is not None:
            patches = gather_tokens(patches, keep)
        x = self.embed(patches)
        position = self.position[:, c:].expand(len(x), -1, -1)
        x = x + (position if keep is None else gather_tokens(position, keep))
        classes = (self.classes + self.position[:, :c]).expand(len(x), -1, -1)
        x, outputs = torch.cat([classes, x], 1), []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i >= len(self.layers) - taps:
                outputs.append(x)
        return x, outputs


class Pool(nn.Module):
    """Attention pool whose query is the mean token."""

    def __init__(self, width, out, heads):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.proj, self.heads = nn.Linear(width, out), heads

    def forward(self, x):
        """Maps [b n width] to [b out]."""
        sources = (x.mean(1, keepdim=True), x, x)
        q, k, v = (
            linear(norm(s)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, norm, s in zip(self.linears, self.norms, sources, strict=True)
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


class Predictor(nn.Module):
    """Predictor: a projection, mask tokens, positions and the last layers of ModernBERT."""

    def __init__(self, e, p):
        super().__init__()
        config = ModernBertConfig(
            hidden_size=p.width,
            intermediate_size=p.mlp_width,
            num_hidden_layers=p.last_layer + 1,
            num_attention_heads=p.heads,
            local_attention=p.window,
            attn_implementation="sdpa",
        )
        self.c = e.class_tokens
        n = e.frames * (e.size // e.patch) ** 2 + e.class_tokens
        self.mask = nn.Parameter(0.02 * torch.randn(e.width))
        self.position = nn.Parameter(0.02 * torch.randn(1, n, e.width))
        self.project = Head(e.width, p.width, normalize=False)
        first = p.last_layer - p.depth + 1
        self.layers = nn.ModuleList(
            modernbert.ModernBertEncoderLayer(config, i) for i in range(first, p.last_layer + 1)
        )
        self.rotary = modernbert.ModernBertRotaryEmbedding(config)
        distance = (torch.arange(n)[:, None] - torch.arange(n)).abs()
        window = (distance <= p.window // 2)[None, None]
        self.register_buffer("window", window, persistent=False)

    def forward(self, tokens, keep, masked):
        """Returns the latents of the masked tokens."""
        b, d, c = len(tokens), tokens.shape[-1], self.c
        grid = self.mask.expand(b, keep.shape[1] + masked.shape[1], d).to(tokens.dtype)
        grid = grid.scatter(1, keep[..., None].expand(-1, -1, d), tokens[:, c:])
        x = self.project(torch.cat([tokens[:, :c], grid], 1) + self.position)
        positions = torch.arange(x.shape[1], device=x.device)[None]
        for layer in self.layers:
            kind = layer.attention_type
            window = self.window if kind == "sliding_attention" else None
            x = layer(x, window, position_embeddings=self.rotary(x, positions, kind))
        return gather_tokens(x[:, c:], masked)


class Block(nn.Module):
    """Residual MLP with adaptive layer norm."""

    def __init__(self, d):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(d, 1e-6), nn.Linear(d, d), nn.Linear(d, d)
        self.adapt = nn.Linear(d, 3 * d)

    def forward(self, x, condition):
        """Maps x [n d] and condition [n d] to [n d]."""
        shift, scale, gate = self.adapt(F.silu(condition)).chunk(3, -1)
        h = self.norm(x) * (1 + scale) + shift
        return x + gate * self.fc2(F.silu(self.fc1(h)))


class Decoder(nn.Module):
    """The diffusion decoder and its loss."""

    def __init__(self, pixels, latent, d, depth):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))
        self.latent, self.input = nn.Linear(latent, d), nn.Linear(pixels, d)
        self.blocks = nn.ModuleList(Block(d) for _ in range(depth))
        self.adapt, self.output = nn.Linear(d, 2 * d), nn.Linear(d, 2 * pixels)
        s = reconstruction.SCHEDULE
        tables = {
            "signal": np.sqrt(s.alphas_cumprod),
            "noise": np.sqrt(1 - s.alphas_cumprod),
            "inverse": np.sqrt(1 / s.alphas_cumprod),
            "inverse_noise": np.sqrt(1 / s.alphas_cumprod - 1),
            "largest": np.log(s.betas),
            "smallest": s.posterior_log_variance,
            "start": s.posterior_start,
            "noised": s.posterior_noised,
        }
        for name, table in tables.items():
            self.register_buffer(f"at_{name}", torch.tensor(table, dtype=torch.float32))

    def forward(self, x, t, z):
        """Predicts noise and variance of noised patches [n p] at steps [n] from latents [n z]."""
        frequencies = 10000.0 ** (-torch.arange(128, device=t.device) / 128)
        angles = t[:, None] * frequencies
        condition = self.time(torch.cat([angles.cos(), angles.sin()], -1)) + self.latent(z)
        x = self.input(x)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.adapt(F.silu(condition)).chunk(2, -1)
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        return self.output(x)

    def loss(self, start, z):
        """Returns the squared error of the noise plus the variational bound of the variance."""
        t = torch.randint(0, 1000, (len(start),), device=start.device)
        noise = torch.randn_like(start)
        at = {k[3:]: v[t][:, None] for k, v in self.named_buffers() if k.startswith("at_")}
        noised = at["signal"] * start + at["noise"] * noise
        predicted, share = self(noised, t, z).float().chunk(2, -1)
        squared = ((predicted - noise) ** 2).mean()
        share = (share + 1) / 2
        log_variance = share * at["largest"] + (1 - share) * at["smallest"]
        implied = at["inverse"] * noised - at["inverse_noise"] * predicted.detach()
        mean = at["start"] * implied + at["noised"] * noised
        true = at["start"] * start + at["noised"] * noised
        ratio = (at["smallest"] - log_variance).exp()
        kl = (true - mean) ** 2 * (-log_variance).exp()
        kl = 0.5 * (log_variance - at["smallest"] + ratio + kl - 1)
        centered, inverse = start - mean, (-0.5 * log_variance).exp()
        upper, lower = (_cdf(inverse * (centered + s / 255)) for s in (1, -1))
        inside = torch.where(start > 0.999, 1 - lower, upper - lower)
        likelihood = torch.where(start < -0.999, upper, inside).clamp(min=1e-12).log()
        bound = torch.where(t[:, None] == 0, -likelihood, kl).mean(-1) / np.log(2.0)
        return squared + bound.mean()


def _cdf(x):
    """Approximates the standard normal distribution function."""
    return 0.5 * (1 + torch.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def gather_tokens(x, indices):
    """Gathers tokens of x [b n d] at indices [b k]; returns [b k d]."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


def patchify(video, patch):
    """Maps [b t h w c] to [b n p]."""
    b, t, h, w, c = video.shape
    x = video.view(b, t, h // patch, patch, w // patch, patch, c)
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(b, -1, patch * patch * c)


def cosine_loss(x, y):
    """Returns the mean of 2 - 2 cos(x, y) over unit vectors."""
    return (2 - 2 * (x * y).sum(-1)).mean()


def sample_mask(scores, visible):
    """Samples indices of kept [b k] and masked [b m] tokens; each frame keeps the same number."""
    frames, patches = scores.shape[1:]
    offsets = patches * torch.arange(frames, device=scores.device)
    order = scores.argsort(-1, descending=True) + offsets[None, :, None]
    keep, masked = order[..., :visible], order[..., visible:]
    return keep.flatten(1).sort(-1)[0], masked.flatten(1).sort(-1)[0]


class Stage(nn.Module):
    """A stage: its trained modules and its teacher or target network."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        e, t, p = config.encoder, config.teacher, config.predictor
        self.encoder, self.predictor = Encoder(e), Predictor(e, p)
        if config.stage == "stage2":
            self.head = Head(p.width, e.width, normalize=True)
            self.target = Encoder(e).requires_grad_(False)
            return
        self.pool = Pool(e.width, e.pool_width, e.pool_heads)
        self.pooled = Head(e.pool_width, t.width, normalize=True)
        self.align = nn.ModuleList(Head(e.width, t.width, normalize=True) for _ in range(t.taps))
        n = e.frames * (e.size // e.patch) ** 2
        self.position = nn.Parameter(0.02 * torch.randn(1, n, e.width))
        d = config.decoder
        self.decoder = Decoder(3 * e.patch**2, p.width, d.width, d.depth)
        vision = SiglipVisionConfig(
            hidden_size=t.width,
            num_hidden_layers=t.depth,
            num_attention_heads=t.heads,
            intermediate_size=t.mlp_width,
            image_size=t.size,
            patch_size=t.patch,
            attn_implementation="sdpa",
        )
        self.teacher = SiglipVisionModel(vision).requires_grad_(False)

    def loss(self, video):
        """Returns the loss of the stage for clips, uint8 [b t h w c]."""
        mean, std = video.new_tensor(IMAGENET, dtype=torch.float32)
        video = (video.float() / 255 - mean) / std
        return (self._stage1 if self.config.stage == "stage1" else self._stage2)(video)

    def _stage1(self, video):
        e, t = self.config.encoder, self.config.teacher
        b, frames = video.shape[:2]
        taps, pooled, scores = self._apply_teacher(video)
        n = scores.shape[-1]
        scores = scores.view(b, frames, n)
        scores = scores.log() - torch.empty_like(scores).exponential_().log()
        keep, masked = sample_mask(scores, n - int(self.config.mask.ratio * n))
        patches = patchify(video, e.patch)
        tokens, streams = self.encoder(patches, keep, t.taps)
        position = gather_tokens(self.position.expand(b, -1, -1), keep)
        loss = 0
        for head, x, y in zip(self.align, streams, taps, strict=True):
            y = gather_tokens(F.normalize(y, dim=-1).view(b, -1, t.width), keep)
            loss = loss + cosine_loss(head(x[:, e.class_tokens :] + position), y) / t.taps
        loss = loss + cosine_loss(
            self.pooled(self.pool(tokens)), pooled.view(b, frames, -1).mean(1)
        )
        latents = self.predictor(tokens, keep, masked).flatten(0, 1)
        start = (
            gather_tokens(patches, masked)
            .unflatten(-1, (-1, 3))
            .transpose(-1, -2)
            .reshape(len(latents), -1)
        )
        # With decoder.dtype=float32, the JAX step does not round these products either.
        rounded = self.config.decoder.dtype == "bfloat16"
        with torch.autocast(video.device.type, enabled=rounded, dtype=torch.bfloat16):
            return loss + self.decoder.loss(start, latents if rounded else latents.float())

    @torch.no_grad()
    def _apply_teacher(self, video):
        t = self.config.teacher
        images = video.flatten(0, 1).permute(0, 3, 1, 2)
        images = F.interpolate(images, size=(t.size, t.size), mode="bicubic")
        vision = getattr(self.teacher, "vision_model", self.teacher)
        x, states = vision.embeddings(images), []
        for layer in vision.encoder.layers:
            states.append(x)
            x = layer(x, None)
        x = vision.post_layernorm(x)
        head = vision.head
        pooled, weights = head.attention(head.probe.expand(len(x), -1, -1), x, x)
        pooled = (pooled + head.mlp(head.layernorm(pooled)))[:, 0]
        return states[-t.taps :], F.normalize(pooled, dim=-1), weights[:, 0]

    def _stage2(self, video):
        e, mask = self.config.encoder, self.config.mask
        patches, c = patchify(video, e.patch), e.class_tokens
        with torch.no_grad():
            target = F.normalize(self.target(patches)[0][:, c:], dim=-1)
        loss, n = 0, (video.shape[2] // e.patch) ** 2
        for share in mask.visible:
            scores = torch.rand(len(video), 1, n, device=video.device)
            scores = scores.expand(-1, video.shape[1], -1)
            keep, masked = sample_mask(scores, max(1, int(share * n)))
            tokens, _ = self.encoder(patches, keep)
            latents = self.head(self.predictor(tokens, keep, masked))
            loss = loss + cosine_loss(latents, gather_tokens(target, masked))
        return loss


class PytorchStep:
    """A training step in PyTorch. Each call trains one step on the same batch.

    Args:
      config: config of the JAX step.
      video: uint8 clips [b t h w c].
      dtype: dtype of the matrix products.
      compiled: whether to use `torch.compile`, with `mode`.
      mode: mode of `torch.compile`, such as "max-autotune"; None for its default.
      device: "cpu" or "cuda".
    """

    def __init__(self, config, video, *, dtype="float32", compiled=False, mode=None, device="cpu"):
        self.model = Stage(config).train().to(device)
        self.video, self.dtype = torch.from_numpy(video).to(device), getattr(torch, dtype)
        self.loss = torch.compile(self.model.loss, mode=mode) if compiled else self.model.loss
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        o = config.optimizer
        self.tx = torch.optim.AdamW(
            self.params, lr=1e-4, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True
        )
        self.clip = o.clip_norm

    def __call__(self):
        """Trains one step and returns its loss."""
        self.tx.zero_grad(set_to_none=True)
        enabled = self.dtype != torch.float32
        with torch.autocast(self.video.device.type, self.dtype, enabled=enabled):
            loss = self.loss(self.video)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, self.clip)
        self.tx.step()
        return loss.item()

    def count(self):
        """Returns the number of trained parameters."""
        return sum(p.numel() for p in self.params)
