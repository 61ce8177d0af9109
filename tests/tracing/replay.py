"""The operations of a tape, run one after the other."""

from lightning_symmetry.tracing.tape import Value


def replayed(tape, tensors):
    """What the operations of a tape give."""

    def of(leaf):
        if isinstance(leaf, Value):
            return values.get(leaf, leaf.constant)
        return [of(each) for each in leaf] if isinstance(leaf, (list, tuple)) else leaf

    values = {tape.leaves[name]: tensor for name, tensor in tensors.items()}
    for operation in tape.operations:
        given = operation.operation(*map(of, operation.args), **operation.kwargs)
        given = given if isinstance(given, (list, tuple)) else [given]
        values.update(zip(operation.outputs, given, strict=True))
    return [of(output) for output in tape.outputs]
