"""Speed of the rotation and of whole models on this device, compared with other projects in the same process.

    python -m benchmarks.speed rotate
    python -m benchmarks.speed curve
    python -m benchmarks.speed decode

Results are written to benchmarks/results/DEVICE-DATE.json; docs/speed.md explains them.
"""
