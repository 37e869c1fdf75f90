"""The API page at `/docs`: Swagger UI over `/openapi.json`, with assets from the package `swagger-ui-bundle`."""

import hashlib
import re
from base64 import b64encode
from functools import cache

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from swagger_ui_bundle import swagger_ui_path

from modernbert.serving.playground import HEADERS, add_file

__all__ = ["add_docs"]

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon-32x32.png": "image/png",
}


def add_docs(app: FastAPI) -> None:
    """Add the page and its assets. Its URLs are relative, so that it also works behind a proxy's path prefix."""
    for name, media_type in _ASSETS.items():
        add_file(app, f"/{name}", (swagger_ui_path / name).read_bytes(), media_type)

    @cache  # made on the first request, when the application has all its routes
    def page() -> HTMLResponse:
        html = bytes(
            get_swagger_ui_html(
                openapi_url="openapi.json",
                title="modernbert serve: HTTP API",
                swagger_js_url="swagger-ui-bundle.js",
                swagger_css_url="swagger-ui.css",
                swagger_favicon_url="favicon-32x32.png",
                # Swagger UI 4 refuses version 3.1, although it shows what FastAPI writes of it.
                swagger_ui_parameters={"spec": app.openapi() | {"openapi": "3.0.3"}},
            ).body
        ).decode()
        return HTMLResponse(html, headers=HEADERS | {"content-security-policy": _policy(html)})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return page()


def _policy(html: str) -> str:
    """Return a Content-Security-Policy that allows this server's files and the page's own inline script, by its hash.

    Swagger UI writes HTML and shows inlined images, so there are no trusted types, and `data:` images are allowed.
    """
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
