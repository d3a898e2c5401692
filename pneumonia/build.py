"""The only door to Hydra's instantiate: a `_target_` outside the list below is refused, whoever wrote the file."""

import warnings
from collections.abc import Mapping
from typing import Any

from pneumonia.errors import UserError

ALLOWED = (
    "pneumonia.models.",
    "pneumonia.training.optimizers.",
    "pneumonia.training.schedules.",
    "pneumonia.attribution.",
    "torch.optim.",
    "albumentations.",
)


def build(section: str, spec: Mapping[str, Any], **arguments: Any) -> Any:
    """Build the object that `spec` describes (`_target_` and its arguments) with further keyword `arguments`.

    Raises UserError for a target that is not allowed, and for arguments that the target refuses (`section` names the
    part of the settings to mend).
    """
    from hydra.utils import get_object

    if not isinstance(spec, Mapping):
        raise UserError(f"{section}: {spec}: expected a mapping with _target_, as conf/ has them.")
    target = spec.get("_target_")
    if not isinstance(target, str) or not target.startswith(ALLOWED):
        raise UserError(f"{section}._target_={target}: expected a name that starts with one of {', '.join(ALLOWED)}")
    given = {key: value for key, value in spec.items() if key != "_target_"}
    try:
        with warnings.catch_warnings():  # albumentations only warns of an argument that it does not know
            warnings.filterwarnings("error", r"Argument\(s\) .* (is|are) not valid", UserWarning)
            return get_object(target)(**given, **arguments)
    except (TypeError, ValueError, UserWarning) as error:
        raise UserError(f"{section}: {error}") from error
    except IndexError as error:  # torch of betas=[0.9], and says no more than that
        raise UserError(f"{section}: {target} wants a longer list than it got in {given} ({error})") from error
    except ImportError as error:
        raise UserError(f"{section}._target_={target}: {error}") from error
