"""Accuracy and time of the step on one GPU, compared with PyTorch's eager and compiled steps.

    python -m benchmarks.gpu [--quick] [--seconds 540] [--sections NAME,...] [--rows NAME,...] [--batches 1,8,32]
                             [--bundles FOLDER] [--costs FILE] [--plan] [--out FILE]

Runs from the checkout and needs only PyTorch and NumPy. Other packages (safetensors, cuda-core, onnxruntime-gpu,
tensorrt, tensorrt_rtx) are optional; a row whose package is missing is skipped and the reason is recorded.

Each section runs in its own processes, and the result file is replaced after every row. So a crash, a lost connection
or the end of the time loses at most one row. Weights and frames are random with fixed seeds. The model has the full
size, except with `--device cpu --quick`, which runs as much of the code as a CPU can run with a tiny model.

Writes $OUT/gpu.json, or benchmarks/results/gpu.json without OUT. benchmarks/NOTES.md contains the predictions.
"""
