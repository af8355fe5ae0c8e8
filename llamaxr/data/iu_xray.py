"""IU X-ray in R2Gen's layout: annotation.json and images/<id>/0.png (frontal), 1.png (lateral).

The reports are Open-i's FINDINGS sections (Demner-Fushman et al. 2016), the split is R2Gen's (Chen et al.
2020). Some copies of annotation.json have a blank key where "test" should stand, so each entry's own `split`
decides, and the key only where an entry has none.
"""

import json
from pathlib import Path

from ..errors import UserError
from .study import SPLITS, Study


def load_studies(root: Path) -> list[Study]:
    """All studies of a root folder, in the file's order. Raises UserError for another layout, a damaged
    annotation.json, an image path outside the root, images that are missing (how many, which first)."""
    path = root / "annotation.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: --root must hold R2Gen's IU X-ray (annotation.json and images/)")
    studies, missing = [], []
    try:
        for key, entries in json.loads(path.read_text(encoding="utf-8")).items():
            for e in entries:
                split = e.get("split", "").strip() or key.strip() or "test"
                if split not in SPLITS or not e["report"].strip() or not 1 <= len(e["image_path"]) <= 2:
                    raise UserError(
                        f"{path}: study {e['id']} has split {split!r}, an empty report or no 1 to 2 images"
                    )
                views = [root / "images" / name for name in e["image_path"]]
                for name, view in zip(e["image_path"], views, strict=True):
                    if not view.resolve().is_relative_to((root / "images").resolve()):
                        raise UserError(
                            f"{path}: study {e['id']} names {name}, outside of images/; mend the file"
                        )
                missing += [view for view in views if not view.is_file()]
                lateral = views[1] if len(views) > 1 else None
                studies.append(Study(e["id"], views[0], lateral, " ".join(e["report"].split()), split))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); fetch it again") from None
    if not studies:
        raise UserError(f"{path} names no study; fetch it again")
    if missing:
        raise UserError(f"{root} lacks {len(missing)} images, first {missing[0]}; fetch the images again")
    if len({s.id for s in studies}) < len(studies):
        raise UserError(f"{path} names a study twice; mend the file")
    return studies
