import time

import pytest

from pipeline.corpus.clean.boilerplate import BUTTONS, NOTICES, without_boilerplate

BEFORE, AFTER = "The mill was built by the river.", "Its wheel still turns."
REMOVED = {
    "cookie": [
        "We use cookies to improve your experience on our site.",
        "This website uses cookies. Learn how we use them.",
        "By continuing to browse this site you agree to our use of cookies.",
        "Accept all cookies",
        "Cookie settings",
        "- Reject all",
    ],
    "share": ["Share on Facebook", "Share this article", "Tweet", "Click to share on Twitter (Opens in new window)"],
    "read_more": ["Read more", "Read more...", "Continue reading \u2192", "Show less", "Load more"],
    "sign_in": ["Sign in", "Log in or register", "You must be logged in to post a comment.", "Leave a Reply"],
    "cart": ["0 items in cart", "Your cart is empty.", "Add to cart", "Add to wishlist", "Continue shopping"],
    "skip": ["Skip to content", "Skip to main content", "Back to top", "Toggle navigation"],
    "newsletter": [
        "Subscribe to our newsletter",
        "Sign up for our weekly newsletter and never miss a post.",
        "Your email address",
        "Get the latest news delivered to your inbox.",
    ],
    "copyright": [
        "\u00a9 2024 The Mill Company. All rights reserved.",
        "Copyright \u00a9 2019-2024 Mill",
        "Copyright 2023 by the mill, all rights reserved",
        "All rights reserved.",
    ],
    "advertisement": ["Advertisement", "Article continues below advertisement"],
    "captcha": ["This site is protected by reCAPTCHA and the Google Privacy Policy applies."],
    "javascript": ["Please enable JavaScript to view the comments.", "JavaScript is disabled in your browser."],
}
KEPT = {
    "cookie": [
        "Cookies are small files that a site keeps in the browser of its visitor.",
        "We use cookies as the base of this cake instead of bread crumbs.",
        "# Cookies",
        "Bake the cookies for ten minutes.",
    ],
    "share": [
        "Share your bread with the poor.",
        "The share of renewable energy rose to a half.",
        "Shares on Facebook fell by a tenth.",
        "Post offices close at six.",
        "Print x",
    ],
    "read_more": [
        "Read more about the mill in chapter two.",
        "Learn more than one language.",
        "See all that you can see.",
    ],
    "sign_in": [
        "Sign in with the user that you created in step two, then open the settings.",
        "Log in to the server with ssh.",
        "## Sign in",
        "Leave a reply to the miller at the door.",
    ],
    "cart": [
        "The items in the cart are stored in the session.",
        "Add to the flour two cups of water.",
        "The cart is old.",
    ],
    "skip": ["Skip to the second chapter if you know the mill.", "Back to the top of the hill we went."],
    "newsletter": [
        "The newsletter was founded in 1923.",
        "Subscribe an object to the event with add_listener.",
    ],
    "copyright": [
        "Copyright law protects the works of an author.",
        "The copyright 1923 edition of the book was withdrawn.",
        "(c) the third of our reasons is the water.",
    ],
    "advertisement": ["Advertisements for mills filled the paper."],
    "captcha": ["This site is protected by a dam."],
    "javascript": ["JavaScript is a language that runs in browsers.", "Enable JavaScript modules with type=module."],
}


@pytest.mark.parametrize("line", [line for lines in REMOVED.values() for line in lines])
def test_boilerplate_line_between_prose_is_removed_and_counted(line):
    assert without_boilerplate(f"{BEFORE}\n{line}\n{AFTER}") == (f"{BEFORE}\n{AFTER}", 1)


@pytest.mark.parametrize("line", [line for lines in KEPT.values() for line in lines])
def test_boilerplate_near_miss_stays(line):
    text = f"{BEFORE}\n{line}\n{AFTER}"
    assert without_boilerplate(text) == (text, 0)


def test_boilerplate_every_rule_has_lines_that_go_and_lines_that_stay():
    assert set(BUTTONS) | set(NOTICES) == set(REMOVED) == set(KEPT)


def test_boilerplate_inside_a_listing_stays():
    text = "```\nSign in\n```\nSign in\n````\n```\nRead more\n````"
    assert without_boilerplate(text) == ("```\nSign in\n```\n````\n```\nRead more\n````", 1)


def test_boilerplate_marks_of_lists_and_rows_do_not_hide_a_line():
    for mark in ("- ", "3. ", "  - ", "| "):
        assert without_boilerplate(f"{BEFORE}\n{mark}Read more")[1] == 1


def test_boilerplate_article_about_cookies_stays_whole():
    text = (
        "# How cookies work\n\nA cookie is set by the server. Most sites use cookies to remember a visitor.\n\n"
        "- Session cookies end with the visit.\n- Third-party cookies are set by others.\n\n"
        "In 2009 a directive made sites ask before they set one, with banners that nobody reads."
    )
    assert without_boilerplate(text) == (text, 0)


@pytest.mark.parametrize(
    "line", ["by using " * 40, "share on " * 44, " " * 400, "#" * 400, "a" * 3_000_000, "(c) x " * 60]
)
def test_boilerplate_hostile_lines_cost_little(line):
    text = "\n".join([line] * (2_000_000 // len(line) + 1))
    start = time.thread_time()
    without_boilerplate(text)
    assert time.thread_time() - start < 20
