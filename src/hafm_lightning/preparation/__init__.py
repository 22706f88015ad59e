"""Songs become shards of tokens: listed, separated, cut, filtered, tokenized, written; stopped anywhere and continued.

Start at :mod:`~hafm_lightning.preparation.pipeline`, which walks through the steps; `configuration` is its YAML file.
On the way: `corpora` and `songs` (where songs come from), `survey` and `plan` (what is there, and which songs make
which shard), `stems`, `separation`, `clips`, `filters` (from files to clean 10 s clips), `training` (tokenizers),
`work` (one shard), `shards` and `manifest` (the files that training reads), `report`. `engines` says where work runs,
`state` what a stopped run left behind. The toy band is `toyband` over `toyband_score`, `toyband_voice` and
`toyband_band`.
"""
