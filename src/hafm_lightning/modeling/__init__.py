"""Plain torch: sequence layouts, attention with a learned relative bias, the Transformer, sampling and decoding.

No Lightning and no audio here. Read in this order: ``layout`` (tokens -> steps), ``relative_position``,
``attention``, ``transformer`` (the backbone), ``conditioning``, ``token_model`` (one stage's network),
``sampling``, ``decoding``, ``cost`` (parameters, FLOPs, memory).
"""
