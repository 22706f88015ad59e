"""How well an accompaniment fits a vocal: harmony, rhythm, joints."""
