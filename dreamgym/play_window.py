"""Playing in a window, with pygame."""

import importlib.util
import os
from collections.abc import Callable

import numpy as np

from dreamgym.errors import ConfigError
from dreamgym.observations import RENDER_SIZE
from dreamgym.play_session import PlaySession, View

_LINE = 20  # pixels
_INK, _GROUND = (230, 234, 239), (18, 22, 27)


def require_window() -> None:
    """See that there is pygame, and a display: without one SDL falls back to a window that nobody sees.

    Raises:
        ConfigError: one of them is missing; the message says what to do.
    """
    if importlib.util.find_spec("pygame") is None:
        raise ConfigError(
            "play needs pygame: pip install 'dreamgym[play]'. In a browser instead: dreamgym play RUN --web"
        )
    import pygame

    pygame.display.init()
    if pygame.display.get_driver() in ("dummy", "offscreen") and "SDL_VIDEODRIVER" not in os.environ:
        raise ConfigError(
            "play needs a display, there is none. In a browser, also of another machine: dreamgym play RUN --web; "
            "for a video instead: dreamgym compare RUN --out FILE.mp4"
        )


def play_in_window(session: PlaySession, fps: int, zoom: float) -> None:
    """Play until the window is closed, or Escape.

    Args:
        session: what is played.
        fps: most steps a second.
        zoom: size of the picture; 1 is about 384 pixels wide.
    """
    import pygame

    pygame.display.init()
    pygame.font.init()
    font = pygame.font.Font(None, _LINE)
    view = session.view()
    height, width = view.picture.shape
    scale = max(1, round(RENDER_SIZE / width)) * zoom
    size = max(1, round(width * scale)), max(1, round(height * scale))
    words = _wrap(_legend(session), lambda line: font.size(line)[0] <= size[0])
    window = pygame.display.set_mode((size[0], size[1] + _LINE * (3 + len(words))))
    pygame.display.set_caption(f"dreamgym play {session.name}")
    clock = pygame.time.Clock()
    try:
        while True:
            for event in pygame.event.get():
                if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                    return
                if event.type in (pygame.KEYDOWN, pygame.KEYUP) and event.key < 0x110000:
                    (session.press if event.type == pygame.KEYDOWN else session.release)(chr(event.key))
                elif event.type == pygame.WINDOWFOCUSLOST:
                    session.release_all()
            if session.tick():
                view = session.view()
                window.fill(_GROUND)
                grey = np.repeat(view.picture.T[..., None], 3, axis=-1)
                window.blit(pygame.transform.scale(pygame.surfarray.make_surface(grey), size), (0, 0))
                for row, line in enumerate([*_lines(view), *words]):
                    window.blit(font.render(line, True, _INK), (4, size[1] + 4 + row * _LINE))
                pygame.display.flip()
            clock.tick(fps)
    finally:
        pygame.display.quit()


def _legend(session: PlaySession) -> list[str]:
    """What keys do, in words that belong together."""
    commands = [f"{key} = {name}" for name, key in session.commands.items() if key]
    return [*session.keys.words().split(", "), *commands, "escape = end"]


def _lines(view: View) -> list[str]:
    """The numbers, and what happened last."""
    place = "dream" if view.place == "dream" else "real game"
    unsure = "" if view.uncertainty is None else f", uncertainty {view.uncertainty:.2f} nats"
    numbers = f"{place}, step {view.step}: reward {view.reward:+.2f}, sum {view.total:+.2f}{unsure}"
    return [numbers, f"{view.action}. {view.message}"]


def _wrap(words: list[str], fits: Callable[[str], bool]) -> list[str]:
    """Words in as few lines as they fit into."""
    lines: list[str] = []
    for word in words:
        longer = f"{lines[-1]}, {word}" if lines else word
        if lines and fits(longer):
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
