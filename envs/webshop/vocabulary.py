"""Words of the synthetic catalogue: invented for it, none is taken from a real shop's records.

Kinds of products are written in the singular; a trailing `~` marks a word that has no other plural. Attributes come in
three forms by how an instruction uses them: before the kind of product, after "with", after "for".
"""

KINDS: dict[str, dict[str, str]] = {
    "beauty": {
        "Beauty & Personal Care › Hair Care": (
            "hair brush, wide tooth comb, hair mask, dry shampoo, hair conditioner, hair clip, curling iron, scalp "
            "serum, hair towel, styling gel"
        ),
        "Beauty & Personal Care › Skin Care": (
            "face cream, facial cleanser, night serum, lip balm, hand lotion, sheet mask, sunscreen stick, eye gel,"
            " body scrub, toner mist"
        ),
        "Beauty & Personal Care › Makeup": (
            "lipstick set, mascara tube, eyeshadow palette, makeup brush, foundation stick, brow pencil, nail "
            "polish, makeup bag, false lashes~, setting spray"
        ),
        "Beauty & Personal Care › Oral Care": (
            "electric toothbrush, mouth rinse, dental floss~, razor kit, beard oil, shaving brush, tongue scraper, "
            "whitening strip, shaving balm, toothbrush case"
        ),
        "Beauty & Personal Care › Bath": (
            "bath bomb, perfume bottle, soap dish, shower cap, bath sponge, foot file, massage roller, essential "
            "oil, manicure set, travel mirror"
        ),
    },
    "electronics": {
        "Electronics › Power": (
            "usb cable, wall charger, wireless charger, power bank, hdmi adapter, car charger, extension cord, "
            "charging dock, ethernet cable, memory card, card reader"
        ),
        "Electronics › Audio": (
            "bluetooth speaker, wired earphone, gaming headset, sound bar, desk microphone, headphone stand, record"
            " turntable, karaoke machine, clock radio, audio splitter"
        ),
        "Electronics › Camera & Video": (
            "security camera, tripod stand, camera bag, ring light, action camera, lens filter, video doorbell, "
            "projector screen, tv mount, camera strap"
        ),
        "Electronics › Phone Accessories": (
            "phone case, screen protector, phone holder, selfie stick, stylus pen, phone grip, watch band, tablet "
            "stand, tablet sleeve, phone lanyard"
        ),
        "Electronics › Computers": (
            "laptop sleeve, wireless mouse, mechanical keyboard, mouse pad, laptop stand, usb hub, monitor arm, "
            "webcam cover, cooling fan, drawing tablet, cable organizer"
        ),
    },
    "garden": {
        "Home & Kitchen › Furniture": (
            "console table, bar stool, corner bookshelf, coffee table, bed frame, desk chair, shoe rack, night "
            "stand, tv cabinet, storage ottoman"
        ),
        "Home & Kitchen › Bedding": (
            "throw pillow, duvet cover, mattress pad, weighted blanket, sheet set, pillow case, bed skirt, body "
            "pillow, quilt set, fleece throw"
        ),
        "Home & Kitchen › Decor": (
            "wall mirror, area rug, window curtain, picture frame, wall clock, scented candle, artificial plant, "
            "flower vase, table lamp, string light"
        ),
        "Home & Kitchen › Kitchen": (
            "cutting board, coffee mug, storage jar, baking pan, spice rack, dish towel, water bottle, lunch box, "
            "knife set, mixing bowl"
        ),
        "Home & Kitchen › Outdoor": (
            "garden hose, plant pot, patio umbrella, bird feeder, camping chair, picnic mat, solar lantern, tool "
            "organizer, fire pit, rope hammock"
        ),
    },
    "fashion": {
        "Clothing, Shoes & Jewelry › Tops": (
            "cotton t-shirt, silk blouse, knit cardigan, pullover hoodie, tank top, wool sweater, denim jacket, "
            "rain coat, quilted vest, polo shirt"
        ),
        "Clothing, Shoes & Jewelry › Bottoms": (
            "jogger pants~, cargo shorts~, yoga leggings~, slim jeans~, pencil skirt, pajama pants~, swim trunks~, "
            "dress pants~, bike shorts~"
        ),
        "Clothing, Shoes & Jewelry › Dresses": (
            "summer dress, maxi dress, linen jumpsuit, beach romper, evening gown, bath robe, night gown, floral "
            "kimono, wrap dress"
        ),
        "Clothing, Shoes & Jewelry › Shoes": (
            "running shoe, ankle boot, flat sandal, house slipper, suede loafer, canvas sneaker, rain boot, ballet "
            "flat, hiking boot, high heel"
        ),
        "Clothing, Shoes & Jewelry › Accessories": (
            "leather belt, beanie hat, crew sock, wool scarf, sun hat, winter glove, school backpack, bifold "
            "wallet, round sunglasses~, tote bag"
        ),
    },
    "grocery": {
        "Grocery & Gourmet Food › Snacks": (
            "granola bar, trail mix, potato chip, popcorn bag, rice cracker, beef jerky~, fruit snack, pretzel "
            "bite, protein cookie, dried mango"
        ),
        "Grocery & Gourmet Food › Beverages": (
            "green tea, ground coffee, herbal tea, sparkling water, protein shake, cocoa mix, fruit juice, energy "
            "drink, coconut water"
        ),
        "Grocery & Gourmet Food › Pantry": (
            "olive oil, pasta sauce, oatmeal cup, brown rice~, peanut butter, maple syrup, black bean, quinoa "
            "pasta, bread mix, soup cup"
        ),
        "Grocery & Gourmet Food › Candy": (
            "gummy bear, chocolate bar, fruit lollipop, mint candy, licorice twist, caramel bite, jelly bean, "
            "chewing gum, marshmallow bag"
        ),
        "Grocery & Gourmet Food › Seasoning": (
            "sea salt, spice blend, hot sauce, vanilla extract, barbecue rub, garlic powder, pancake mix, honey jar"
        ),
    },
}

# before the kind | after "with" | after "for"
ATTRIBUTES: dict[str, str] = {
    "beauty": (
        "long lasting, cruelty free, easy apply, fragrance free, high quality, paraben free, travel size, non "
        "toxic, easy clean, eco friendly, oil free, alcohol free, fine mist, double sided | hyaluronic acid, tea "
        "tree, coconut oil, natural ingredients, argan oil, rose water, green clay, aloe vera | sensitive skin, dry"
        " hair, dark circles, damaged hair, dead skin, fine lines, nail art, curly hair"
    ),
    "electronics": (
        "fast charging, easy install, heavy duty, high speed, plug play, water resistant, noise cancelling, hands "
        "free, ultra slim, non slip, easy carry, high resolution, long range, dust proof | gold plated, aluminum "
        "alloy, carbon fiber, stereo sound, quick release, tempered glass, power saving, optical zoom | home "
        "theater, video calls, mobile phones, outdoor use, tablet pc, car use, game consoles, small desks"
    ),
    "garden": (
        "machine washable, easy clean, space saving, easy assemble, double sided, heavy duty, non slip, eco "
        "friendly, super soft, hand painted, fully padded, wall mounted, rust proof, stain resistant | solid wood, "
        "stainless steel, memory foam, storage space, steel frame, faux leather, natural bamboo, tempered glass | "
        "living room, dining room, small spaces, guest bedroom, home office, front porch, picnic days, kitchen "
        "island"
    ),
    "fashion": (
        "machine wash, hand wash, slim fit, light weight, moisture wicking, quick drying, loose fit, wide leg, butt"
        " lifting, day comfort, slip resistant, tummy control, wash cold, tumble dry | rubber sole, elastic waist, "
        "long sleeve, short sleeve, drawstring closure, memory foam, faux fur, button front | daily wear, teen "
        "girls, gym workout, summer beach, office wear, winter days, party nights, rainy days"
    ),
    "grocery": (
        "gluten free, low sugar, non gmo, dairy free, plant based, usda organic, soy free, low carb, nut free, "
        "individually wrapped, freeze dried, ready eat, sugar free, fat free | natural flavors, whole grain, "
        "dietary fiber, real fruit, high protein, sea salt, cane sugar, natural colors | gift baskets, birthday "
        "party, school lunches, keto diets, quick breakfasts, baby shower, road trips, coffee breaks"
    ),
}

MATERIALS: dict[str, str] = {
    "beauty": "ceramic, bamboo, silicone, botanical, mineral, herbal, marine, velvet",
    "electronics": "aluminum, braided, nylon, silicone, leather, copper, acrylic, magnetic",
    "garden": "oak, walnut, linen, steel, bamboo, ceramic, velvet, wicker",
    "fashion": "cotton, linen, leather, denim, velvet, fleece, satin, mesh",
    "grocery": "roasted, crunchy, creamy, smoky, spicy, tangy, toasted, mild",
}

AUDIENCES = (
    "women, men, kids, teens, adults, travelers, students, beginners, families, seniors, guests, artists, runners, "
    "campers, gamers, cooks"
)

NUMBERS = "2 Pack, 3 Piece Set, 4 Count, 6 Inch, 8 Ounce, 12 Ounce, 24 Count, Set of 2, 1 Pound, 10 Feet"

COLORS = (
    "black, white, red, blue, navy, green, grey, pink, purple, yellow, beige, brown, teal, orange, burgundy, khaki,"
    " rose gold, light blue, dark green, army green, wine red, royal blue, sky blue, hot pink, black | white, black"
    " | red, multicolored, redwood, blackberry, evergreen, leopard, silver, gold, mint, coral, lavender, ivory, "
    "charcoal, turquoise, olive, bright "
    "purple, a-black, b-blue, c-grey, dusty rose, off white, deep sea, sunset, forest camo, marble, cherry wood, "
    "natural oak"
)

SIZES: dict[str, str] = {
    "fashion": (
        "x-small, small, medium, large, x-large, xx-large, 3x-large, 4x-large, 5x-large, 5.5, 6, 6.5, 7, 7.5, 8, "
        "8.5, 9, 9.5, 10, 10.5, 11, 12, 30w x 30l, 32w x 30l, 32w x 32l, 34w x 32l, 36w x 34l, one size, 7 wide, 9 "
        "wide"
    ),
    "garden": (
        'twin, full, queen, king, california king, 16" x 16", 18" x 18", 20" x 20", 24" x 16", 2 ft x 3 ft, 4 ft x '
        "6 ft, 5 ft x 8 ft, 8 ft x 10 ft, 52 x 63 inch, 52 x 84 inch, 60 x 80 inch, small, medium, large, set of 2,"
        " set of 4"
    ),
    "beauty": (
        "1 fl oz, 2 fl oz, 4 fl oz, 8 fl oz, 16 fl oz, 1 ounce (pack of 1), 2 ounce (pack of 1), 3 ounce (pack of "
        "2), travel, regular, large, 10 inch, 12 inch, 14 inch, 16 inch, 18 inch, 20 inch"
    ),
    "electronics": (
        "3 ft, 6 ft, 10 ft, 15 ft, 25 ft, 50 ft, 32gb, 64gb, 128gb, 256gb, 11 inch, 13.3 inch, 14 inch, 15.6 inch, "
        "38mm, 40mm, 42mm, 44mm, 1 pack, 2 pack"
    ),
    "grocery": (
        "6 ounce (pack of 1), 8 ounce (pack of 2), 12 ounce (pack of 1), 12 ounce (pack of 6), 1 pound (pack of 1),"
        " 2 pound (pack of 1), 5 pound (pack of 1), 24 count, 48 count, 100 count"
    ),
}

STYLES = "classic, modern, vintage, sport, basic, deluxe, with stand, with case, starter kit, refill, 2-tier, 3-tier"

FLAVORS = (
    "vanilla, chocolate, strawberry, sea salt, honey, lemon, mint, peach mango, wild berry, cinnamon, original, "
    "spicy chili, coconut, apple pie, salted caramel"
)

FITS = "men, women, youth, regular, big & tall, petite"

# of descriptions and bullet points; {kind}, {attribute}, {material}, {audience} are filled in
SENTENCES = (
    "This {kind} is made for {audience} who want something {attribute} every day.",
    "The {material} finish keeps its look after long use and is simple to care for.",
    "Our team tests each {kind} by hand before it leaves the workshop.",
    "Please check the size chart before ordering, and allow a small difference due to manual measurement.",
    "Colors may look slightly different on your screen because of the light of the photo.",
    "A thoughtful gift for {audience} at birthdays, holidays, weddings and every other happy day.",
    "If anything is wrong with your order, write to us and we will answer within one day.",
    "The package includes one {kind}, a cloth for cleaning and a short printed guide.",
    "Thanks to its {attribute} design it fits well into any daily routine at home or on the way.",
    "Choose the version that suits you, and combine it with the other products of our collection.",
    "Made of carefully selected {material} parts that are safe, durable and pleasant to touch.",
    "Store in a cool and dry place away from direct sun for the best experience.",
    "Small enough for a bag, strong enough for a year of travel, and ready when you need it.",
    "We listened to {audience} and changed the shape so that it rests well in the hand.",
    "Satisfaction comes first: return the {kind} within thirty days if you do not love it.",
    "It is {attribute}, and it stays that way after many weeks of regular use.",
)

BULLET_HEADS = (
    "Quality, Design, Easy to Use, Perfect Gift, Material, Versatile, After Sales, What You Get, Care, Details"
)

BRAND_STARTS = (
    "Al, Bre, Cor, Del, Em, Fen, Gro, Hal, Is, Jun, Kel, Lum, Mar, Nor, Or, Pel, Quin, Ros, Sol, Tir, Ul, Vel, Wen, Zan"
)

BRAND_ENDS = (
    "bora, cado, dine, fora, gana, hive, kora, lenta, mira, nexo, phora, quis, rava, sento, tova, vanta, wyn, zeta"
)

# the simple style: a vocabulary small enough for a tiny model
SIMPLE_KINDS: dict[str, str] = {
    "beauty": "brush, cream, soap, comb",
    "electronics": "cable, charger, speaker, lamp",
    "garden": "pillow, blanket, vase, mug",
    "fashion": "shirt, dress, jacket, scarf",
    "grocery": "tea, coffee, cookie, honey",
}

SIMPLE_ATTRIBUTES = "soft, light, strong, warm, natural, classic, modern, simple"

SIMPLE_COLORS = "red, blue, green, black"

SIMPLE_SIZES = "small, medium, large"
