"""A made-up home and garden shop with judged pairs, as two parquet tables in the form that ESCI was published in.

    python -m lorry.data.synthetic FOLDER

writes FOLDER/train/shopping_queries_dataset_examples.parquet and …_products.parquet.

Search in this shop is hard, as in real ones, because titles and queries use different words. Titles use names of lines
("Longmere" is a sofa), house colours ("Graphite" is grey), trade sizes ("4'6" is a double bed) and style numbers.
Customers write couch, gray and double bed, and make typing errors. Labels follow from the product and the query: E is
what was asked for; S differs in something that was asked for, or serves instead; C is an accessory; I is anything else.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

TEST_EVERY = 5  # every fifth query is a test query
MAX_PER_LABEL = {"E": 4, "S": 4, "C": 2, "I": 4}  # maximum products of each label per query


@dataclass(frozen=True)
class Kind:
    """A kind of product.

    Attributes:
        noun: What the catalogue calls it.
        asked: What customers call it.
        lines: Names of its lines, which belong to no other kind; most titles have the line instead of the noun.
        materials: What it is made of.
        sizes: Trade size and what customers call it, as "trade=asked".
        extras: Its accessories.
        alike: Noun of the kind that can serve instead, or "".
    """

    noun: str
    asked: str
    lines: str
    materials: str
    sizes: str
    extras: str
    alike: str = ""


BED = "3'=single|4'6=double|5'=king size|6'=super king"
DEPARTMENTS = {
    "Furniture": (
        ("Norvale", "Haldane & Fry", "Umberline", "Stavik"),
        (
            Kind("Settee", "sofa|couch|settee", "Longmere|Hearthside|Coniston", "Velvet|Linen|Leather",
                 "2-Str=2 seater|3-Str=3 seater|LHF Chaise=corner", "Loose Cover|Arm Tray|Riser Feet", "Day Bed"),
            Kind("Day Bed", "sofa bed|futon|sleeper couch", "Nightjar|Layover|Tuckaway", "Velvet|Linen|Cotton Drill",
                 "2-Str=2 seater|3-Str=3 seater", "Mattress Topper|Under-Seat Bag", "Settee"),
            Kind("Lounge Seat", "armchair|accent chair|reading chair", "Wingfold|Fireside Nook|Larkhill",
                 "Velvet|Boucle|Leather", "Petite=small|Grande=oversized", "Head Cushion|Footrest Pad", "Swivel Seat"),
            Kind("Swivel Seat", "office chair|desk chair|computer chair", "Taskwell|Verta|Meridian 9",
                 "Mesh|Leather|Fabric", "Lo-Back=low back|Hi-Back=high back", "Castor Set|Lumbar Roll|Floor Mat",
                 "Lounge Seat"),
            Kind("Writing Table", "desk|computer desk|workstation", "Scrivener|Foolscap|Inkwell",
                 "Oak|Walnut|Birch Ply", "W100=small|W140=large|W180=extra large",
                 "Cable Tray|Monitor Riser|Drawer Insert"),
            Kind("Low Table", "coffee table|cocktail table|center table", "Broadsheet|Tidepool|Saucer",
                 "Oak|Marble|Smoked Glass", "Dia 60=small round|Dia 90=large round|110x60=rectangular",
                 "Glass Protector|Felt Feet"),
            Kind("Open Shelving", "bookcase|bookshelf|book shelves", "Folio|Stacks|Marginalia",
                 "Oak|Walnut|Powder Steel", "3T=3 shelf|5T=5 shelf|7T=tall", "Wall Strap|Book Ends|Spare Shelf"),
        ),
    ),
    "Lighting": (
        ("Brightmoor", "Pellaro", "Osk", "Candlewick Works"),
        (
            Kind("Standing Luminaire", "floor lamp|standing lamp|tall lamp", "Heron|Stork|Long Acre",
                 "Brass|Matt Steel|Rattan", "H150=5 ft|H180=6 ft", "Spare Shade|Foot Switch", "Desk Luminaire"),
            Kind("Desk Luminaire", "table lamp|bedside lamp|nightstand light", "Wren|Pipit|Short Story",
                 "Brass|Ceramic|Rattan", "H30=small|H55=tall", "Spare Shade|Inline Dimmer", "Standing Luminaire"),
            Kind("Drop Fitting", "pendant light|hanging lamp|ceiling light", "Plumb|Bellweather|Cascade",
                 "Brass|Opal Glass|Rattan", "1-Lt=single|3-Lt=3 light|5-Lt=5 light", "Ceiling Rose|Suspension Cable"),
        ),
    ),
    "Bed & Bath": (
        ("Mirelle", "Wrenfield", "Sallow & Thread", "Tarnbrook"),
        (
            Kind("Quilt Set", "duvet cover|comforter cover|bedding set", "Meadowsweet|Sunday Lie|Fallow",
                 "Percale|Linen|Brushed Cotton", BED, "Cover Clips|Button Pack", "Base Sheet"),
            Kind("Base Sheet", "fitted sheet|bed sheet|bottom sheet", "Tautline|Plainsong|Evenfold",
                 "Percale|Linen|Jersey", BED, "Sheet Grippers|Corner Bands", "Quilt Set"),
            Kind("Bath Linen", "bath towel|shower towel|towels", "Millrace|Spindrift|Tarn", "Terry|Waffle|Bamboo",
                 "50x90=hand|70x130=bath|100x150=jumbo", "Hanging Loops|Towel Ring"),
            Kind("Wet Room Screen", "shower curtain|bath curtain|tub curtain", "Squall|Mizzle|Freshet",
                 "Polyester|PEVA|Hemp", "180x180=standard|180x200=extra long", "Ring Set|Tension Rod|Hem Weights"),
        ),
    ),
    "Kitchen": (
        ("Kestrin", "Quillon", "Emberley", "Dunnock & Daughters"),
        (
            Kind("Skillet", "frying pan|fry pan|omelette pan", "Searwell|Crackling|Griddlestone",
                 "Cast Iron|Tri-Ply|Copper", "20 cm=8 inch|26 cm=10 inch|30 cm=12 inch", "Handle Sleeve|Splatter Guard",
                 "Sauce Vessel"),
            Kind("Sauce Vessel", "saucepan|sauce pot|milk pan", "Simmerset|Roux|Ladlewood", "Enamel|Tri-Ply|Copper",
                 "1.5 L=small|2.8 L=3 qt|4 L=large", "Glass Lid|Draining Insert", "Skillet"),
            Kind("Boiler Jug", "kettle|tea kettle|electric kettle", "Elevenses|Firstlight|Rolling Boil",
                 "Brushed Steel|Glass|Enamel", "0.8 L=travel|1.7 L=family size", "Scale Filter|Descaler Sachets"),
            Kind("Cook's Blade", "chef knife|kitchen knife|chopping knife", "Mincemaster|Keenfold|Brunoise",
                 "Damascus|Carbon Steel|Ceramic", "15 cm=6 inch|20 cm=8 inch|25 cm=10 inch",
                 "Edge Guard|Whetstone|Blade Roll"),
        ),
    ),
    "Garden": (
        ("Thornbury Tools", "Fennick", "Greenholt", "Ravel & Sons"),
        (
            Kind("Turf Cutter", "lawn mower|grass cutter|lawnmower", "Stripemaker|Paddock|Evensward",
                 "Petrol|Cordless|Push Reel", "32 cm=small|42 cm=medium|53 cm=wide",
                 "Spare Blade|Grass Bag|Mulch Plug"),
            Kind("Topiary Shear", "hedge trimmer|bush trimmer|hedge cutter", "Boxwood|Privet Pro|Yewline",
                 "Petrol|Cordless|Corded", "45 cm=18 inch|60 cm=24 inch", "Blade Sheath|Extension Pole"),
            Kind("Canopy", "parasol|patio umbrella|garden umbrella", "Siesta|Noonshade|Lido", "Polyester|Canvas|Olefin",
                 "2.1 m=7 ft|2.7 m=9 ft|3.3 m=11 ft", "Weighted Base|Storm Cover"),
            Kind("Watering Line", "garden hose|hosepipe|water hose", "Rillet|Snakehead|Brook & Spray",
                 "Rubber|Woven|PVC", "15 m=50 ft|30 m=100 ft", "Nozzle|Wall Reel|Tap Coupling"),
        ),
    ),
}  # fmt: skip
COLOURS = {
    "grey|gray": "Graphite|Pewter|Heron Wing",
    "blue|navy": "Harbour|Ink|Midnight Ferry",
    "green": "Lichen|Fern|Bottle",
    "white|cream": "Chalk|Swan|Clotted",
    "black": "Onyx|Coal Scuttle",
    "brown|tan": "Umber|Saddle|Conker",
    "red": "Madder|Brick|Rosehip",
    "yellow|mustard": "Ochre|Saffron|Piccalilli",
}
EXTRA_WORDS = ("for small flat", "modern", "cheap", "best rated", "with free delivery", "new")


@dataclass(frozen=True)
class Product:
    """A product of a kind, or an accessory for that kind (then `extra` says which)."""

    identity: str
    title: str
    kind: Kind
    department: str
    brand: str
    line: str
    material: str
    size: str
    colour: str
    extra: str


def generate(folder: Path, *, queries: int = 350, seed: int = 0) -> None:
    """Write the two tables of the sample to `folder`/train.

    Args:
        folder: Where the folder `train` is created if it does not exist.
        queries: Number of queries; each is judged with about a dozen products.
        seed: The same seed gives the same tables.
    """
    rng = random.Random(seed)
    shop = _stock(rng)
    examples = _examples(rng, shop, queries)
    judged = {row["product_id"] for row in examples}
    train = folder / "train"
    train.mkdir(parents=True, exist_ok=True)
    for name, rows in (("examples", examples), ("products", [_row(item) for item in shop if item.identity in judged])):
        pa.parquet.write_table(pa.Table.from_pylist(rows), train / f"shopping_queries_dataset_{name}.parquet")


def _stock(rng: random.Random) -> list[Product]:
    """Return everything the shop sells; no two products have the same title."""
    shop: dict[str, Product] = {}
    for department, (brands, kinds) in DEPARTMENTS.items():
        for kind in kinds:
            for line in _options(kind.lines):
                brand = rng.choice(brands)
                for number in range(22):
                    extra = rng.choice(_options(kind.extras)) if number >= 16 else ""
                    item = _product(rng, department, kind, brand, line, extra=extra)
                    shop.setdefault(item.title, item)
    return list(shop.values())


def _product(rng: random.Random, department: str, kind: Kind, brand: str, line: str, *, extra: str) -> Product:
    material, size = rng.choice(_options(kind.materials)), rng.choice(_options(kind.sizes))
    colour = rng.choice(list(COLOURS))
    shade, trade = rng.choice(_options(COLOURS[colour])), size.split("=")[0]
    style = f"{line[:2].upper()}{rng.randrange(100, 999)}"
    fits = rng.choice((line, f"{line} {trade}", kind.noun))
    titles = (
        (f"{brand} {extra} for {fits}, {shade}", f"{brand} {extra} {style} - fits {fits}", f"{extra} ({fits}) {brand}")
        if extra
        else (
            f"{brand} {line} {trade} {material} {shade} {style}",
            f"{line} by {brand}, {material}, {shade}, {trade}",
            f"{brand} {line} {kind.noun} {trade} - {material} / {shade}",
            f"{line} {style} {shade} {trade} {material}",
        )
    )
    identity = "L" + "".join(rng.choices("0123456789BCDFGHJKLMNPQRSTVWXYZ", k=9))
    return Product(identity, rng.choice(titles), kind, department, brand, line, material, size, colour, extra)


@dataclass(frozen=True)
class Need:
    """What a customer wants: a kind, and the properties it must have."""

    kind: Kind
    wishes: dict[str, str]


def _examples(rng: random.Random, shop: Sequence[Product], queries: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    products = [item for item in shop if not item.extra]
    asked: set[str] = set()
    while len(asked) < queries:
        wanted = rng.choice(products)  # so that the shop has at least one exact product
        names = rng.sample(("colour", "size", "material", "brand", "line"), k=rng.choice((0, 1, 1, 1, 2, 2)))
        need = Need(wanted.kind, {name: getattr(wanted, name) for name in names})
        query = _phrase(rng, need)
        if query in asked:
            continue
        asked.add(query)
        split, small = ("test" if len(asked) % TEST_EVERY == 0 else "train"), int(rng.random() < 0.5)
        for item, label in _label_products(rng, shop, need):
            row = {"example_id": len(rows), "query": query, "query_id": len(asked), "product_id": item.identity}
            row |= {"product_locale": "us", "esci_label": label, "small_version": small, "large_version": 1}
            rows.append(row | {"split": split})
    return rows


def _label_products(rng: random.Random, shop: Sequence[Product], need: Need) -> list[tuple[Product, str]]:
    """Return products and their labels in random order; half of the irrelevant ones are from the same department."""
    by_label: dict[str, list[Product]] = {label: [] for label in MAX_PER_LABEL}
    for item in shop:
        by_label[_label(need, item)].append(item)
    home = next(name for name, (_, kinds) in DEPARTMENTS.items() if need.kind in kinds)
    near = [item for item in by_label["I"] if item.department == home]
    by_label["I"] = rng.sample(near, MAX_PER_LABEL["I"] // 2) + rng.sample(by_label["I"], MAX_PER_LABEL["I"] // 2)
    judged = {
        item.identity: (item, label)
        for label, items in by_label.items()
        for item in rng.sample(items, min(len(items), MAX_PER_LABEL[label]))
    }
    return rng.sample(list(judged.values()), len(judged))


def _label(need: Need, item: Product) -> str:
    if item.extra:
        return "C" if item.kind == need.kind else "I"
    if item.kind == need.kind:
        missed = sum(getattr(item, name) != value for name, value in need.wishes.items())
        return "E" if not missed else "S"
    return "S" if item.kind.noun == need.kind.alike and not need.wishes else "I"


def _phrase(rng: random.Random, need: Need) -> str:
    """Return the need as a customer would type it."""
    words = {name: value.lower() for name, value in need.wishes.items()}
    if "colour" in words:
        words["colour"] = rng.choice(_options(words["colour"]))
    if "size" in words:
        words["size"] = words["size"].split("=")[1]
    before = [words[name] for name in ("brand", "line", "colour", "size", "material") if name in words]
    noun = rng.choice(_options(need.kind.asked))
    parts = [noun, *before] if rng.random() < 0.2 else [*before, noun]
    if rng.random() < 0.25:
        parts.append(rng.choice(EXTRA_WORDS))
    query = " ".join(parts)
    return _add_typo(rng, query) if rng.random() < 0.2 else query


def _add_typo(rng: random.Random, query: str) -> str:
    """Swap two letters, leave one out, or double one."""
    place = rng.randrange(1, len(query) - 1)
    one, two = query[place], query[place + 1]
    return query[:place] + rng.choice((two + one, two, one + one + two)) + query[place + 2 :]


def _row(item: Product) -> dict[str, object]:
    trade, asked = item.size.split("=")
    thing = item.extra.lower() if item.extra else item.kind.asked.split("|")[0]
    return {
        "product_id": item.identity,
        "product_title": item.title,
        "product_description": f"<p>{item.line} {thing} from {item.brand}.</p><br>{item.material} &amp; built to last.",
        "product_bullet_point": f"Line: {item.line}\nSize: {trade} ({asked})\nDepartment: {item.department}",
        "product_brand": item.brand,
        "product_color": item.colour.split("|")[0],
        "product_locale": "us",
    }


def _options(text: str) -> list[str]:
    return text.split("|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m lorry.data.synthetic", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the folder train is created")
    parser.add_argument("--queries", type=int, default=350, help="number of queries (default: 350)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: 0)")
    given = parser.parse_args()
    generate(given.folder, queries=given.queries, seed=given.seed)
