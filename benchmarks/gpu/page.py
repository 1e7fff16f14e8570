"""Formats docs/performance-gpu.md."""

COLUMNS = (
    *("stage", "size", "options", "clips", "seconds", "clips_per_second", "tflops", "of_peak"),
    *("of_ceiling", "gib", "new_batches", "cudnn_calls", "compile_seconds", "loss"),
)
PYTORCH_COLUMNS = "stage", "size", "kernel", "compiled", "clips", "seconds", "ratio", "ran"


def format_page(result: dict) -> str:
    """Returns the page for the result of all parts that have finished."""
    lines = [
        "# Performance on a GPU",
        "",
        "Written by `make gpu-check`. [performance.md](performance.md#on-a-gpu) explains the "
        "columns.",
        "",
        f"{result['devices']} x {result['device']}, jax {result['jax']}, {result['date']}. A large "
        f"bfloat16 matrix product reaches {result['matmul_tflops']} TFLOP/s; the peak of the data "
        f"sheet is {result['peak_tflops'] or 'unknown'}.",
        "",
        format_table(COLUMNS, result["steps"]),
        "",
    ]
    if result["pytorch"]:
        lines += [
            f"The same step in PyTorch {result['pytorch'][0]['torch']}. A ratio above 1 means that "
            "invnext_jax is faster:",
            "",
            format_table(PYTORCH_COLUMNS, result["pytorch"]),
            "",
        ]
    lines += [
        "Largest relative error of output and gradients of attention in bfloat16, compared with "
        "float32 without a fused kernel:",
        "",
        format_table(("shape", "cudnn", "error", "wrong"), result["kernels"]),
        "",
        *(f"- Failed: {sentence}" for sentence in result["wrong"]),
        *(f"- Not run: {sentence}" for sentence in result["skipped"]),
        *([] if result["wrong"] else ["All checks passed."]),
        "",
    ]
    return "\n".join(lines)


def format_table(columns, rows) -> str:
    """Formats dicts as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = ("" if row.get(name) is None else str(row[name]) for name in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
