"""The command `tamperfuse list`."""

from rich.table import Table

from tamperfuse.cli.options import Json, out_console, print_json


def list_components(as_json: Json = False) -> None:
    """List defenses, attacks, judges, built-in corpora and bundled models, one per line.

    Example: `tamperfuse list`
    """
    from tamperfuse.attacks import ATTACKS
    from tamperfuse.corpora.builtin import ABOUT
    from tamperfuse.defenses import DEFENSES
    from tamperfuse.evaluation.judges import JUDGES
    from tamperfuse.models.bundled import ENCODERS, MODELS

    groups: dict[str, list[tuple[str, str]]] = {
        "Defenses": [(component.name, component.about) for component in DEFENSES.all()],
        "Attacks": [(component.name, component.about) for component in ATTACKS.all()],
        "Judges": [(component.name, component.about) for component in JUDGES.all()],
        "Corpora": [(f"builtin:{name}", about) for name, about in ABOUT.items()],
        "Models": [
            (name, model.about if model.installed else f"{model.about}; not installed: {model.install}")
            for name, model in (MODELS | ENCODERS).items()
        ],
    }
    if as_json:
        print_json(
            {title.lower(): [{"name": n, "about": about} for n, about in rows] for title, rows in groups.items()}
        )
        return
    for title, rows in groups.items():
        table = Table(title, "", box=None, header_style="bold", min_width=24)
        for name, about in rows:
            table.add_row(f"  {name}", about)
        out_console.print(table)
    out_console.print("Use them in a study file: tamperfuse run STUDY.yaml --out DIR")
