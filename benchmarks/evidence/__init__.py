"""Does distillation help? Schedules as long as the student alone needs, several seeds, and images that no choice saw.

    python benchmarks/evidence tune  --root ROOT --only retinanet --hours 8
    python benchmarks/evidence run   --root ROOT --only retinanet --hours 8
    python benchmarks/evidence table --root ROOT --only retinanet

Repeat `tune` and `run` until they end with exit code 0 (75: the time is up; 76: other processes work on the rest).
`plan` says what is left. Every run is a folder of its own, an ordinary one of mgdet, and goes on where it stopped.
Several processes, and machines that share ROOT, may work at once.

| file | what is in it |
|---|---|
| `pairs.py` | detectors, images and what is searched, pair by pair |
| `data.py`, `backbones.py` | the three splits, and what backbones know before |
| `arms.py` | what is compared, and the config of each run |
| `choose.py` | every choice, made on the validation images alone |
| `trials.py` | one detector alone, as the settings of pairs were found |
| `runs.py` | one run as one folder; `work.py` does those that are left |
| `measure.py` | the test images; only `table` looks at them |
| `differences.py`, `words.py`, `page.py` | what the runs say, as numbers, sentences and a page |
"""
