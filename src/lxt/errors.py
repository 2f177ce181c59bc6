"""What can go wrong, as classes; messages quote what was given and say what would be right."""


class LxtError(Exception):
    """Base of every error that this library raises on purpose."""


class InvalidInput(LxtError, ValueError):
    """The prompt, token ids or mask can't be explained as given."""


class InvalidTarget(LxtError, ValueError):
    """What is to be explained does not exist in the model's output."""


class InvalidTap(LxtError, ValueError):
    """A latent place, or a part of one, does not exist in the model."""


class InvalidModel(LxtError, TypeError):
    """The object given as a model is none that relevance can be propagated through."""


class InvalidComposite(LxtError, ValueError):
    """A composite's name, target or rule is not one that exists."""


class AlreadyRegistered(LxtError, RuntimeError):
    """A composite is already registered on the model or on a part of it."""


class UnknownOperation(LxtError, NotImplementedError):
    """An operation on the path of relevance has no rule in the composite."""


class UnusedCompositeWarning(UserWarning):
    """A composite was put on a model and taken off again, and had nothing to do."""


class UnusedEditWarning(UserWarning):
    """A model was steered, and ran, and an edit had nothing to do."""


class InactiveFeatureWarning(UserWarning):
    """A feature of a sparse autoencoder is explained where it is 0."""


class UnmappedOperationWarning(UserWarning):
    """A layer map leaves an operation on the path of relevance to autograd's plain gradient."""


class SequentialBackwardWarning(UserWarning):
    """A model's backward pass can't take several targets at once, so they run one at a time."""


class ReentrantCheckpoint(LxtError, RuntimeError):
    """Reentrant gradient checkpointing hides the operations that it runs."""


class NotDifferentiable(LxtError, RuntimeError):
    """A graph of relevance itself was asked for where there is none."""


class CheckpointFailed(LxtError, RuntimeError):
    """A layer under `checkpoint=` can't run a second time as it ran the first."""


class NonFiniteLogits(LxtError, ArithmeticError):
    """The model's output holds NaN or infinity where it is to be explained."""


class NonFiniteRelevance(LxtError, ArithmeticError):
    """The backward pass overflows in the model's floating point type."""


class ModelUnavailable(LxtError, OSError):
    """A model could not be found, fetched or read."""


class UnwritableFile(LxtError, OSError):
    """A file that was asked for can't be written."""


class InvalidFile(LxtError, ValueError):
    """A file does not hold what it should."""


class CheckFailed(LxtError, AssertionError):
    """A rule or a model is not what `lxt.testing` asks of one."""


class InvalidRule(LxtError, ValueError):
    """A rule can't be applied to the function and operands that it was given."""


class MissingPackage(LxtError, ImportError):
    """A package that is asked for is not installed; the message says how to install it."""
