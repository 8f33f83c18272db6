"""Serves the page with uvicorn."""

import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware

from web_chat.files import Intake, keep_swept
from web_chat.limits import Limits

DEMO = Path(__file__).parents[1]
THREADS = 256
"""Answers and uploads at a time, of all visitors. Each takes a thread that waits for its tokens."""


def serve_page(
    page: gr.Blocks,
    listening: socket.socket,
    folder: Path,
    limits: Limits,
    users: list[tuple[str, str]] | None = None,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Serve a page until a signal comes.

    `Blocks.launch` is not used: it asks its own server for the page and gives up if the answer takes 3 s, which happens
    on a busy machine.

    Args:
        page: The page.
        listening: Where.
        folder: Where uploads go; it is kept swept.
        limits: Of uploads.
        users: Names and passwords; None lets everyone in.
        ready: Is called once the server starts.
    """
    keep_swept(folder)
    page.max_threads = THREADS  # before `queue`, which reads it
    # Answers do not wait for each other: the engine forms batches.
    page.queue(default_concurrency_limit=None)
    # An upload may hold several files, and a reopened conversation its images in base64.
    body = Middleware(Intake, limit=(limits.images * limits.file_mb * 3 // 2 + 1) * 2**20, folder=folder)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None, middleware=[body]),
        page,
        path="/",
        auth=users,
        max_file_size=f"{limits.file_mb}mb",
        show_error=False,
        theme=_theme(),
        head=head(),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))
    # In the main thread uvicorn would take the signals, and wait for connections that pages keep open.
    thread = threading.Thread(target=partial(server.run, [listening]), daemon=True)
    thread.start()
    ready()
    thread.join()


def head() -> str:
    """Style and script of the page. Gradio's own argument for styles would prefix every selector."""
    style, script = ((DEMO / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    return f"<style>{style}</style><script>{script}</script>"


def _theme() -> gr.Theme:
    """System fonts, so that the page loads none from another server, and a contrast of 4.5:1 as WCAG 2 asks."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue="teal", neutral_hue="slate", **fonts)
    quiet = ("body_text_color_subdued", "block_info_text_color", "input_placeholder_color")
    shades = dict.fromkeys(quiet, "*neutral_500") | {f"{name}_dark": "*neutral_400" for name in quiet}
    button = dict.fromkeys(("button_primary_background_fill", "button_primary_background_fill_dark"), "*primary_700")
    return theme.set(**shades, **button, color_accent="*primary_700")
