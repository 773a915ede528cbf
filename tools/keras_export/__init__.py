"""Keras to ONNX, one file a step, in this order.

`sources` opens a file, folder or function; `trace` makes something to convert of it; `convert` calls tf2onnx; `names`
gives nodes and weights the names of their layers; `check` holds the result against Keras; `summary` says what became
of each layer; `export` does all of it. `runtime` imports TensorFlow, late. ``python -m tools.export_keras`` is the
command.
"""
