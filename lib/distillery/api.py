"""What the commands do, as functions: `convert`, `prune`, `distill`, `evaluate`, `score`, `advise`, `export`, and what comes out as torch Datasets.

```python
from distillery import api
kept = api.prune("photos", 0.3, rule="flexrand")
kept.write("kept.csv")
api.distill("photos", 1).write("set.safetensors")
api.evaluate("set.safetensors", "photos").rows
```
"""

from distillery.commands.advise import Advice, advise, sizes
from distillery.commands.distill import Distilled, distill
from distillery.commands.evaluate import Judged, evaluate
from distillery.commands.prune import check, prune
from distillery.commands.score import Scored, score
from distillery.data.convert import convert
from distillery.data.export import export
from distillery.data.kept import Kept, KeptDataset, SyntheticDataset

__all__ = ["Advice", "Distilled", "Judged", "Kept", "KeptDataset", "Scored", "SyntheticDataset"]
__all__ += ["advise", "check", "convert", "distill", "evaluate", "export", "prune", "score", "sizes"]
