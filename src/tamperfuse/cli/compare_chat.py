"""The command `tamperfuse compare-chat`."""

from typing import Annotated

import typer

from tamperfuse.cli.options import ChatTemplate, out_console


def compare_chat(
    models: Annotated[
        list[str], typer.Argument(help="Two or three models, each as in `tamperfuse harden`.", metavar="MODEL...")
    ],
    threat: Annotated[
        str | None,
        typer.Option(
            help="Threat whose prompts the page lists; by default the one that a model was hardened against, if it is recorded.",
            metavar="SRC",
        ),
    ] = None,
    response_tokens: Annotated[int, typer.Option(help="Maximum length of an answer, in tokens.", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 for greedy decoding.", min=0.0)] = 0.0,
    port: Annotated[int, typer.Option(help="Port of the page; 0 for any free one.", min=0, max=65_535)] = 0,
    chat_template: ChatTemplate = None,
) -> None:
    """Ask two or three models the same prompt, side by side, on a local page.

    The page is reachable from this machine only. All models stay in memory. Ctrl-C ends the command.

    Example: `tamperfuse compare-chat undefended hardened --threat builtin:cooking`
    """
    from tamperfuse.commands.compare_chat import open_chat

    server = open_chat(
        models,
        threat=threat,
        response_tokens=response_tokens,
        temperature=temperature,
        port=port,
        chat_template=chat_template,
    )
    with server:
        out_console.print(f"Open {server.url} in a browser; Ctrl-C ends the server.")
        server.serve()
    out_console.print("The server has ended.")
