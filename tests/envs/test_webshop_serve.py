"""The shop for people: over plain HTTP, and in a real headless browser."""

import http.client
import json
from contextlib import AbstractContextManager
from html import escape
from urllib.parse import urlencode, urlsplit

import pytest

from agentrl.envs.env_errors import DataError
from agentrl.envs.webshop.env import WebShopEnv
from agentrl.envs.webshop.shop_server import ShopServer
from tests.browser import open_browser
from tests.servers import running


def make_env(**options: object) -> WebShopEnv:
    return WebShopEnv(split="test", data_dir="synthetic", expert="default", **options)  # type: ignore[arg-type]


def serving() -> AbstractContextManager[ShopServer]:
    return running(ShopServer(make_env, port=0))


def ask(server: ShopServer, method: str, path: str, form: dict[str, str] | None = None, **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    body = urlencode(form) if form is not None else None
    connection.request(method, path, body, {"Content-Type": "application/x-www-form-urlencoded"} | headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response, text


def test_visit_when_played_over_http_then_state_and_score_are_the_agents():
    with serving() as server:
        response, _ = ask(server, "POST", "/start", {"task": "3"})
        path = response.getheader("Location")
        env = make_env()
        observation, info = env.reset(options={"task": 3})
        while "expert_action" in info:
            _, page = ask(server, "GET", path)
            assert escape(observation) in page
            action = info["expert_action"]
            form = {"query": action[7:-1]} if action.startswith("search[") else {"action": action}
            assert ask(server, "POST", path, form)[0].status == 303
            observation, _, _, _, info = env.step(action)
        _, page = ask(server, "GET", path)
        assert f'<strong id="score">{info["score"]}</strong>' in page
        assert server.find_visit(path.removeprefix("/visit/")).env.session.anchor() == env.session.anchor()


@pytest.mark.parametrize(
    ("method", "path", "form", "headers", "status"),
    [
        ("GET", "/", None, {}, 200),
        ("GET", "/style.css", None, {}, 200),
        ("GET", "/nothing", None, {}, 404),
        ("GET", "/visit/unknown", None, {}, 404),
        ("POST", "/visit/unknown", {"action": "click[buy now]"}, {}, 404),
        ("POST", "/start", {"task": "500"}, {}, 400),
        ("POST", "/start", {"task": "one"}, {}, 400),
        ("POST", "/start", {"task": "1" * 5_000}, {}, 400),
        ("POST", "/start", {"task": ""}, {}, 303),
        ("GET", "/", None, {"Host": "shop.example"}, 403),
        ("POST", "/start", {"task": "1"}, {"Origin": "http://shop.example"}, 403),
        ("POST", "/start", {"task": "1" * 70_000}, {}, 413),
        ("POST", "/start", {}, {"Content-Length": "9" * 5_000}, 413),
        ("POST", "/start", {}, {"Content-Length": "-5"}, 411),
        ("POST", "/start", {}, {"Content-Length": "five"}, 411),
    ],
)
def test_server_when_asked_then_answers_with_the_right_status(method, path, form, headers, status):
    with serving() as server:
        assert ask(server, method, path, form, **headers)[0].status == status


def test_server_when_a_form_never_arrives_then_others_are_served():
    with serving() as server:
        slow = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        slow.putrequest("POST", "/start")
        slow.putheader("Content-Length", "10")
        slow.endheaders()
        assert ask(server, "GET", "/")[0].status == 200
        slow.close()


def test_server_when_the_port_is_taken_then_says_what_to_do():
    with serving() as server, pytest.raises(DataError, match=f"port {server.server_port} cannot .* or 0 for any"):
        ShopServer(make_env, port=server.server_port)


def test_server_when_text_looks_like_html_then_it_is_escaped():
    with serving() as server:
        path = ask(server, "POST", "/start", {"task": "0"})[0].getheader("Location")
        ask(server, "POST", path, {"action": "<script>alert(1)</script>"})
        response, page = ask(server, "GET", path)
        assert "<script>" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "default-src 'none'" in response.getheader("Content-Security-Policy")


def test_server_when_many_visits_start_then_the_oldest_are_forgotten():
    with serving() as server:
        keys = [server.start_visit(task % 5) for task in range(205)]
        assert [server.find_visit(key) is None for key in (keys[4], keys[5])] == [True, False]


@pytest.mark.slow
def test_shop_when_clicked_through_in_a_browser_then_shows_the_agents_state_and_score():
    with serving() as server, open_browser() as browser:
        browser.open(server.url)
        browser.find("#task").type("7")
        browser.find("button[type=submit]").click()
        env = make_env()
        observation, info = env.reset(options={"task": 7})
        assert browser.find("#request").text() == env.session.goal.text
        visited_pages, log = set(), []
        # a detour that an expert would not take, then the expert's way
        detour = [f"search[{env.session.goal.target.query}]", "click[next >]", "click[< prev]", None, "click[features]"]
        for planned in [*detour, "click[< prev]", "click[back to search]", *[None] * 12]:
            action = planned or info.get("expert_action")
            if action is None:
                break
            if planned is None and env.session.name == "results" and len(visited_pages) < 3:
                action = f"click[{env.session.clickables[-1]}]"
            if action.startswith("search["):
                browser.find("#query").type(action[7:-1])
                browser.find("[role=search] button").click()
            else:
                click_button(browser, action)
            observation, _, is_done, _, info = env.step(action)
            visited_pages.add(env.session.name)
            log.append(action)
            browser.wait_until(f"return document.querySelector('#log')?.textContent == {json.dumps(chr(10).join(log))}")
            assert browser.title() == f"WebShop: {env.session.name}"
            assert browser.run("return document.querySelector('#observation').textContent") == observation
            pressed = [button.text() for button in browser.find_all("button[aria-pressed=true]")]
            assert pressed == (list(env.session.options.values()) if env.session.name == "item" else [])
        assert is_done
        assert browser.find("#score").text() == str(info["score"])
        assert visited_pages == {"results", "item", "Features", "index", "done"}
        assert urlsplit(browser.url()).path.startswith("/visit/")


def click_button(browser, action: str) -> None:
    (button,) = [found for found in browser.find_all("button[name=action]") if found.attribute("value") == action]
    button.click()
