"""Benchmark of the step on one GPU: correctness first, then speed, beside what PyTorch reaches by itself.

    python -m benchmarks.gpu [--quick] [--seconds 540] [--sections NAME,...] [--rows NAME,...] [--batches 1,8,32]
                             [--bundles FOLDER] [--costs FILE] [--plan] [--out FILE]

Runs from the checkout with PyTorch and NumPy alone. Packages beyond these (safetensors, cuda-core, onnxruntime-gpu,
tensorrt, tensorrt_rtx) are used where installed; a row that lacks its package is skipped with the reason.

Each section runs in processes of its own, and the result file is replaced after every row, so that a crash, a lost
connection or the end of the time costs one row. Weights and frames are random with fixed seeds. The model is the
full-size one, except with `--quick` on a CPU, which runs every line that a CPU can run on a tiny model.

NOTES.md in the folder above holds the predictions.
"""
