"""How often views.py's choice of the frontal in Open-i's layout agrees with Kaggle's projection column.

    python benchmarks/views.py OPENI KAGGLE

OPENI and KAGGLE are the folders of those two layouts of IU X-ray, as --root takes them. Counted are the
studies of both to whose images Kaggle's column gives a frontal. Beside it stands the plain order: the first
image that Open-i names. make_iu_sim.py's layouts give a measurement on simulated images and a simulated
column, and should be called that.
"""

import argparse
import json
from pathlib import Path

from measure import write_results

from llamaxr.data.iu_layouts import read_kaggle, read_openi
from llamaxr.errors import UserError, one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("openi", type=Path, help="folder with NLMCXR_png/ and ecgen-radiology/")
    parser.add_argument("kaggle", type=Path, help="folder with indiana_projections.csv and images/")
    given = parser.parse_args()
    # Kaggle's 6_IM-2192-1001.dcm.png is Open-i's CXR6_IM-2192-1001.png
    number = lambda name: name.partition("_IM-")[2].split(".")[0]
    column = {r.uid: number(r.frontal.name) for r in read_kaggle(given.kaggle) if r.frontal}
    reports = [r for r in read_openi(given.openi)[0] if r.uid in column and r.frontal]
    if not reports:
        raise UserError(f"{given.openi} and {given.kaggle} have no study with a frontal in common")

    def agreement(part: list) -> dict:
        ours = sum(column[r.uid] == number(r.frontal.stem) for r in part)
        order = sum(column[r.uid] == number(r.images[0][0]) for r in part)
        return {"studies": len(part), "ours": ours, "order": order}

    results = {"command": "python benchmarks/views.py OPENI KAGGLE", "all": agreement(reports),
               "two_images_or_more": agreement([r for r in reports if len(r.images) > 1])}  # fmt: skip
    print(json.dumps(results, indent=2))
    write_results("views", results)


if __name__ == "__main__":
    with one_line_errors():
        main()
