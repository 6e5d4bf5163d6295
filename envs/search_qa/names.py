"""Word pools of the generated encyclopaedia."""

GIVEN_NAMES = tuple(
    """
    Ada Bruno Clara Dario Edith Felix Greta Hugo Irma Jonas Katia Leo Mina Nora Otto Petra Quentin Rosa Simon Tilda
    Ulrich Vera Walter Xenia Yann Zelda Alma Boris Celia Denis Elsa Fritz Gilda Henrik Iris Jarl Kora Lars Maud Nils
    Olga Paul Ruth Sven Tessa Ugo Viola Wanda Ylva Zeno Anton Berta Carl Dora Emil Flora Georg Hanna Ivo Judith
    """.split()  # noqa: SIM905
)
SURNAMES = tuple(
    """
    Alder Birk Coster Dunn Eklund Farrow Gant Holm Ibsen Jarvis Kestrel Lund Marsh Nyberg Oakes Pell Quill Rask Stone
    Thorn Ustinov Vance Wren Yates Zorn Ash Bray Crane Drake Ember Finch Grove Heath Irving Juniper Knox Larch Moor
    Nash Orchard Pike Reed Sedge Tarn Umber Vale Weld York Zeller Amber Brook Cliff Dale Fell Glen Hale Isle Keel
    """.split()  # noqa: SIM905
)
TOWN_STEMS = tuple(
    """
    Ald Bram Cor Dun Esk Far Gars Hel Ing Jar Kil Lang Mel Nor Oster Pen Quar Ros Sel Tor Ulf Var Wes Yar Zel Arn
    Bel Cal Dor Elm
    """.split()  # noqa: SIM905
)
TOWN_ENDINGS = ("ford", "ham", "mouth", "stead", "wick", "borg")
COUNTRIES = tuple(
    """
    Arvania Belmora Cordovia Drevland Estaria Fennmark Gallinia Hestria Istrovia Jorland Kelmaria Lutania Morvania
    Nordavia Ostmark Pelagia
    """.split()  # noqa: SIM905
)
RIVERS = ("Arle", "Brenn", "Corve", "Dorn", "Eyle", "Fenn", "Glim", "Hisse", "Ilm", "Kander", "Lohn", "Mure")
TITLE_ADJECTIVES = tuple(
    """
    Amber Bitter Broken Crimson Distant Empty Fallen Gentle Golden Hidden Hollow Iron Last Lonely Lost Midnight Narrow
    Pale Quiet Red Restless Salt Secret Silent Silver Slow Sunken Velvet Wandering Winter
    """.split()  # noqa: SIM905
)
TITLE_NOUNS = tuple(
    """
    Anchor Bridge Candle Carousel Cathedral Compass Crown Desert Door Echo Feather Forest Garden Harbor Horizon Island
    Labyrinth Lantern Letter Meadow Mirror Mountain Ocean Orchard Palace River Shadow Storm Tower Voyage
    """.split()  # noqa: SIM905
)
COMPACT_TITLES = tuple(
    """
    Mirage Lantern Voyage Harvest Labyrinth Meadow Tempest Orchard Carnival Eclipse Horizon Feather Compass Garden
    Shadow Island Mirror Palace Desert Ocean Bridge Castle Forest Candle
    """.split()  # noqa: SIM905
)
COMPACT_TOWNS = tuple(f"{stem}{TOWN_ENDINGS[i % 6]}" for i, stem in enumerate(TOWN_STEMS[:16]))
"""16 of the towns, as single words."""
