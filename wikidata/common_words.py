"""English words that name nothing when they stand in running text, though Wikidata has a song, a film or a place of
that name.

Written by hand for this project from the grammar of English (closed word classes). No published word list went in. The
words of shops and sites were chosen with the frequent words of 10,000 LAION alt-texts and some templated captions
in view, so figures of the gate on those two are not held out. Concrete nouns are left out on purpose, however frequent
they are: a chair, an apple and a mouse are what photos show. Colours are in, except where they name a thing (orange,
rose, violet).

FUNCTION_WORDS   closed classes of English, and the articles, prepositions and pronouns of the languages alt-text mixes
                 in
COMMON_WORDS     verbs with their forms, adjectives, adverbs, abstract nouns, units, months and days, words of shops and
                 sites, abbreviations, colours in other languages
VERBS            of these the verbs, and forms of verbs that are things, too ("fly", "saw")
BEFORE_VERBS     what only a verb follows, of such words ("I saw", "can fly")
DAYS_AND_MONTHS  of these the names of days and months
UNITS_AND_TIMES  of these what is counted: units of measure, days, months and other times
"""

from __future__ import annotations

_FUNCTION = """
a an the this that these those here there where when why how what which who whom whose whoever whatever whichever
i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself we us our
ours ourselves they them their theirs themselves one ones oneself someone somebody something anyone anybody anything
everyone everybody everything none nobody nothing noone other others another each every either neither both all any some
few many much more most several such same own enough less least little lot lots plenty
of in on at by for with without within from to into onto upon off out over under above below between among amongst
through throughout during before after since until till against toward towards around about across along behind beside
besides beyond near down up inside outside per via versus vs like unlike as than except despite plus minus round
and or but nor so yet if unless because although though while whereas whether once
be am is are was were been being have has had having do does did done doing can could may might must shall should will
would ought need dare not no yes aint cant wont dont doesnt didnt isnt arent wasnt werent hasnt havent hadnt couldnt
wouldnt shouldnt don't doesn't didn't isn't aren't wasn't weren't hasn't haven't hadn't couldn't wouldn't shouldn't
can't won't i'm you're we're they're he's she's it's i've you've we've they've i'll you'll he'll she'll we'll they'll
i'd you'd let's that's there's what's who's where's how's ain't etc ie eg
too very just only also even still already again ever never always often sometimes usually now then soon later today
tomorrow yesterday tonight maybe perhaps quite rather really almost nearly instead else otherwise therefore thus hence
however meanwhile moreover anyway indeed well far away back forth together apart aside ahead forward backward upward
downward zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion dozen half
first second third fourth fifth sixth seventh eighth ninth tenth once twice last next
oh ah hey hi hello wow yeah ok okay bye please thanks thank ha haha lol omg
le la les un une des du de et ou est sont dans pour avec sur par sans que qui ce cette ces son sa ses mon ma mes nos vos
plus au aux en il elle nous vous ils je tu
der die das den dem ein eine einer eines einem einen und oder ist sind im am zum zur mit von vom bei aus nach auf wie
nicht auch noch nur wenn als dass sich ich du er sie wir ihr mein dein sein
el los las una unos unas y o es son con para por sin del al que se su sus mi tu lo como mas muy este esta estos estas
il lo gli uno ed e di da nel nella della dello dei delle degli che non per una
um os as dos das na nos nas ao aos com para sem seu sua
het een van voor met op te aan bij uit door niet naar ook dan zijn
och att det som pa av med till ett inte ar en
og i av pa til med som er ikke
w z na do od dla i oraz jest nie ze po przez
bin ibn bint und ve ile bir
"""

_VERBS = """
accept achieve act add admit advertise advise afford agree aim allow announce answer appear apply appreciate approach
approve argue arrange arrive ask assemble assist assume attach attack attempt attend attract avoid become begin behave
believe belong bring build burn buy call care carry cause celebrate change charge chase check choose claim clean clear
climb close collect combine come compare compete complain complete consider consist contact contain continue contribute
control convert cook copy correct cost cover create customize cut dance deal decide decorate define delay delete deliver
demand deny depend derive describe deserve design desire destroy develop die differ disappear discover discuss display
divide download draw dream dress drink drive drop earn eat edit embed enable encourage end enjoy enlarge enter escape
establish estimate examine exist expand expect experience explain explore express extend face fail fall feature feed
feel fight fill filter find finish fit fix float fly focus fold follow force forget forgive form gain gather gaze get
give go grow guess handle hang happen hate hear help hide hire hit hold hope hug hurry hurt identify ignore imagine
improve include increase indicate inform insert inspire install intend introduce invest invite involve join jump keep
kick kill kiss knit know lack laugh launch lay lead lean learn leave lend let lie lift limit link list listen live load
look lose love maintain make manage mark match matter mean measure meet melt mention miss mix mount move multiply name
notice obtain occur offer open operate order organize overcome own paint pass pause pay perform permit pick place plan
play point pose post pour practice pray prefer prepare present preserve press pretend prevent print produce promise
promote protect prove provide publish pull purchase push put raise reach read realize receive recommend record reduce
refer reflect refuse regard relate relax release rely remain remember remind remove rent repair repeat replace reply
report represent request require rescue respond rest result retire return reveal ride rise roll run sail save say scream
search see seek seem select sell send separate serve set settle shake share shine shoot shop shout show shut sign sing
sit sketch skip sleep slide slip smell smile solve sort sound speak spend spin split spread stack stand stare start
state stay steal step stick stop store stretch strike struggle study submit succeed suffer suggest suit supply support
suppose surprise surround survive suspect swear sweep swim swing switch take talk taste teach tear tell tend test think
throw touch trace track trade train transfer transform translate travel treat trust try turn twist type understand unite
update upgrade upload use value vary view visit vote wait wake walk wander want warn wash waste wave wear welcome win
wish wonder work worry wrap write yell zoom
adapt aim align arise await bare beg blend blink bloom blow boost bounce bow brag breathe bring browse bump cease
cheer cling clutch compile conceal conclude confirm confuse conquer consult consume cope correspond crawl creep cry
dash debut decline dedicate delight deploy detach detect devote dip distinguish dive dwell echo elevate embrace emerge
emit endure engage enhance ensure entertain erase evolve exceed excite exclude exhaust expire exploit expose fade
fasten fetch flee flip fulfil fulfill glide grab greet grind grip groom halt hang harm heal hesitate hop illuminate
imply impress inhale inherit injure inspect integrate interact invent invade isolate jerk lack leap lean learn lurk
merge modify mount mourn nap negotiate nominate obey oblige observe obtain omit opt overlook owe peek peel perish
persuade plunge ponder possess predict proceed prohibit pursue quit recall recover regain regret reject rejoice remind
render renew replace rescue resemble reserve resist restore restrict reveal reverse rinse roam rotate rub rush scatter
scratch seal seize shift shrink sigh smash sneak snap soak soar spill splash squeeze stab stain starve steer stir
stretch strip stroll stumble summarize surrender suspend sustain swallow tackle tangle tease tempt tickle tilt tow
trigger undergo undo unfold unlock unveil unwind urge utilize vanish verify violate warm weave weigh whisper widen wipe
withdraw withstand yield stagger address adore adorn advocate awaken cancel connect discontinue expel license rank rate
reform remodel reunite solicit stalk vie vying
"""

# Of what a photo may show, too, so that only what stands before them tells.
_VERBS_OF_THINGS = """
bark bear blow bomb book bowl box brush cast catch chain comb cook crack cross crown drum farm fence film fire fish
flash flood fly fork fuel grace guard gun hammer head ice iron jam jet land light lock mail map mask milk mine nail
paint park phone pilot plant pump rain ring rock rope row ruin sail salt seat seed shell ship ski smoke snow star steam
stone storm strap sugar surf tape tie toast train trap truck tunnel voice water wave wax whip wire
"""

_BEFORE_VERBS = """
i we you he she they who to can could will would shall should must may might cannot can't couldn't won't wouldn't
don't doesn't didn't not never let's i'll we'll you'll he'll she'll they'll i'd we'd you'd i've we've you've they've
"""

_IRREGULAR_FORMS = """
became began begun brought built bought came chose chosen cut dealt drew drawn dreamt drank drunk drove driven ate eaten
fell fallen fed felt fought found flew flown forgot forgotten gave given went gone got gotten grew grown hung heard hid
hidden held kept knew known laid led left lent lay lain lost made meant met paid ran rode ridden rose risen said saw
seen sold sent shook shaken shone shot shown sang sung sat slept slid spoke spoken spent spun spread stood stole stolen
blew blown leapt wove woven crept clung dove fled overcame paid quit ridden sank sunk shrank shrunk slung sought
strode stung withdrew withdrawn
stuck struck swore sworn swept swam swum swung took taken taught tore torn told thought threw thrown understood woke
woken wore worn won wrote written born lit broke broken froze frozen bent bound dug watched watching fled ground wound
"""

_ADJECTIVES = """
able absolute abstract active actual additional adorable adult advanced affordable aged alive alone amateur amazing
ancient angry animated annual antique apparent attractive authentic automatic available average awake aware awesome
awful bad bare basic beautiful beloved best better big bigger biggest bitter black blank blind blonde blue blurred
blurry bold boring brave brief bright brilliant broad brown brunette busy calm capable careful casual cheap cheerful
chic classic classical clever closed cold colorful colored coloured colourful comfortable comic commercial common
complex compact concrete confident conscious constant contemporary convenient cool corporate correct cosy cozy crazy
creative creepy critical crude cruel crystal curious current curved custom cute daily damaged dangerous dark dead dear
deep delicate delicious delightful dense detailed diagonal different difficult digital dirty distant diverse domestic
double dramatic dry due dual dull dusty eager early easy ecological economic educational effective efficient elderly
electric electronic elegant embroidered emotional empty endless engraved enormous entire epic equal essential everyday
evil exact excellent exciting exclusive exotic expensive external extra extreme fabulous fair faithful fake familiar
famous fancy fantastic fashionable fast fat favorite favourite female festive fierce final financial fine firm fixed
flat flexible floral foldable foreign formal former framed free frequent fresh friendly front full fun funky funny
futuristic general generic gentle genuine geometric giant glad global glossy glowing golden good gorgeous gothic grand
graphic grateful gray great green grey grim grumpy handmade handsome handy happy hard hardcover harmless healthy heavy
helpful hidden high higher highest hilarious historic historical holy homemade honest horizontal horrible hot huge human
humble hungry ideal identical idle immediate important impossible impressive incredible independent indoor industrial
infinite inner innocent instant intelligent intense interactive interesting interior internal international invisible
isolated joyful junior key kind lactose large larger largest late latest lazy legal legendary light likely linear liquid
local lonely long loose loud lovely low lower lowest loyal lucky luxurious luxury mad magic magical main major male
manual marine massive mature maximum mechanical medical medieval medium mental mere middle mighty mild military mini
miniature minimal minimalist minimum minor missing mobile modern modest monochrome moody multicolor multicolored
multiple muscular musical mutual mysterious naked narrow national native natural naughty neat necessary negative nervous
neutral new newest nice noble noisy normal northern nostalgic nude obvious odd official old older oldest online opposite
optional ordinary organic oriental original ornamental ornate outdoor outer oval overall overhead painted pale panoramic
parallel partial past patterned peaceful perfect permanent personal personalized pink plain pleasant pleased plastic
pocket polite poor popular portable positive possible powerful practical precious precise pregnant premium pretty
previous primary prime printed private probable professional prominent proper proud public pure purple quick quiet
random rapid rare raw ready real realistic reasonable recent rectangular red regional regular related relevant reliable
religious remarkable remote removable responsible retro reversible rich right rigid romantic rough round royal rude
rural rusty rustic sad safe scary scenic sealed seamless seasonal secondary secret secure senior sensitive serious
severe sexy shallow sharp shiny short shy sick silent silly similar simple single skinny sleek sleepy sleeveless slim
slow small smaller smallest smart smooth social soft solar solid sophisticated sore sour southern spare special specific
spectacular spicy spiritual square stable standard steady steep sterile still straight strange strict striped strong
stunning stupid sturdy stylish subtle successful sudden sufficient suitable sunny super superb superior sure sweet swift
symmetrical tall tan tasty technical temporary tender terrible thick thin tight tiny tired top total tough traditional
transparent trendy tropical true typical ugly ultimate ultra unable uncommon unexpected unique unisex universal unknown
unlimited unusual upper urban urgent used useful useless usual vacant vague valid valuable various vast vertical vibrant
vintage virtual visible visual vital vivid warm washed waterproof weak wealthy weekly weird western wet white whole
wholesale wicked wide wild wireless wise wonderful wooden woolen wrong yearly yellow young younger youngest yummy beige
maroon turquoise teal magenta cyan navy eastern multi non semi anti pre post sub pro co ex
accidental administrative aesthetic ambitious applicable appropriate assorted automated central certified coastal
comparable compatible competitive complementary comprehensive compulsory controversial crucial dedicated
defensive deluxe detachable disposable distinctive divine durable dynamic eligible enchanting endangered
exceptional experimental extraordinary fluffy fragile gross hollow iconic inappropriate incorrect indigenous inevitable
influential informal innovative insane intact intimate legitimate literary logical luminous lush magnificent majestic
mandatory marvelous mature memorable metric minded municipal obscure offshore onboard optimal optimistic outstanding
physical potential prestigious prone quad quarterly radical reluctant renowned reputable respective ridiculous robust
sacred seasoned sensible sheer spacious spontaneous starry stationary statutory strategic structural suspicious
sustainable technological thorough tribal triple unfinished unlikely upright verbal versatile virtuous vocal voluntary
wholesome worthy
academic allied arty charmed clockwise collectible collectibles collective comfy damned enchanted explosive fatal
feminine forever freestyle integral juvenile mid multilingual pending provisional residential rounding speedy styling
maxi midi petite stainless staggered adjustable adhesive airtight backless bespoke bloody boneless bulky carefree
careless chunky collapsible compostable cordless countless cracked crisp crispy crunchy curly dainty damp distressed
drunk edible effortless elastic elastane erotic faded faint fearless flawless frameless frosted frosty fuzzy glamorous
glittery greasy gritty hairy harsh hazy hollow homeless hypoallergenic inflatable insulated invincible irresistible
juicy lightweight limitless lively lukewarm magnetic matte mechanized messy metallic mindful mindless misty muddy
nonstick odorless opaque oversize oversized padded painless pointed pointy powdered priceless puffy quilted ragged
reckless refillable refined refurbished relentless reusable ripe ripped rotten rugged rustproof satisfied scented
scratchproof secondhand selfless semiprivate shaggy shallow shiny slick slippery sloppy smoky soggy solemn speechless
spotless steamy sticky stiff strapless striking succulent superfluous swollen tailored tangy tender timeless tolerant
touching toxic translucent treacherous turbulent unabridged unbelievable unbreakable uncut undeniable unfair
unforgettable unfortunate unfriendly unhappy unhealthy unisex unleashed unlocked unofficial unpleasant unstoppable
untamed upcoming upholstered useless vacuumed velvety viscous washable weatherproof weightless wicked windproof wrinkled
"""

_ADVERBS = """
absolutely accidentally actually alternatively approximately automatically badly barely basically briefly carefully
certainly clearly closely commonly completely constantly correctly currently daily deeply definitely directly easily
entirely equally especially essentially eventually exactly extremely fairly finally firmly formerly fortunately freely
frequently freshly fully generally gently gradually greatly happily hardly heavily highly hopefully immediately
increasingly initially largely lately likely literally locally loosely lovingly mainly merely mostly mutually naturally
necessarily newly normally obviously occasionally officially originally partially particularly perfectly personally
possibly potentially precisely previously primarily probably professionally properly publicly purely quickly quietly
randomly rapidly rarely readily recently regularly relatively roughly safely separately seriously significantly
similarly simply slightly slowly softly somewhat specially specifically strongly subsequently successfully suddenly
surely temporarily totally traditionally truly typically unfortunately unusually widely worldwide abroad afterwards
afterward anymore anytime anywhere everywhere nowhere somewhere somehow someday nowadays overseas underneath upstairs
downstairs indoors outdoors overnight halfway sideways
"""

_ABSTRACT = """
ability absence access accident account achievement action activity addition address advance advantage adventure advice
affair afternoon age agency agenda agreement aid alert alternative amount analysis anger angle anniversary answer
anxiety application appointment area argument arrangement arrival article aspect association assistance atmosphere
attention attitude auction audience authority autumn award background balance base basis beauty beginning behavior
behaviour being belief benefit birth birthday blessing bit bonus border bottom brand break breath budget bunch bundle
business career case cash category cause caution celebration center centre century ceremony challenge champion chance
chapter character chart choice christmas circle circumstance class client closeup code collection color colour column
combination comedy comfort comment commerce commission community company comparison competition complaint component
concept concern conclusion condition conference confidence conflict connection consequence content contest context
contract contrast conversation corner courage course craft creation creature credit crew crime crisis culture cure
custom customer cycle damage danger data date day deal death debt decade decision decoration deep degree delight
delivery demonstration department departure depth description desktop destination detail development device diagram
difference difficulty dimension dinner direction disadvantage disaster discount discovery discussion disease distance
diversity diy drama dream duty ease economy edge edition editorial education effect effort element emergency emotion
employee employer employment energy enemy entertainment entrance entry environment episode equipment era error essay
evening event evidence evolution exam example excellence exchange excitement excuse exercise exhibition existence exit
expansion expert expression extent eternity fact factor failure faith fame family fan fantasy fashion fate fault favor
favour fear feedback feeling festival fiction field figure file film finance firm flavor flavour fortune foundation
fraction freedom friend friendship fun function fund future gallery game gang gap gender generation genre gift glamour
glory goal good gossip grade grammar grace gratitude greeting grief group growth guarantee guest guidance guide
guideline guy habit happiness harm harmony health heaven height hell help hero heritage highlight hint history hobby
holiday home honor honour hope horror host hour household humor humour idea identity illness illusion image imagination
impact importance impression incident income indication individual industry inflation influence info information injury
innovation input inquiry inspiration instance instruction insurance intelligence interest interpretation interview
introduction invention investment invitation issue item job joke journey joy judgment justice kid kind knowledge label
lack landscape language latitude law layer layout leader leadership league lecture legacy legend leisure length lesson
level liberty license licence lie life lifestyle limit line link list literature living loan location logic logo loss
luck lunch lyrics madness magic mail majority manner manufacturer margin market marketing marriage mass master material
math maximum meal meaning measurement media medicine meeting member membership memory menu mercy merchandise message
method middle midnight mind minimum minority minute miracle mission mistake mixture mode model moment money mood moral
morning motion motivation movement movie murder music mystery myth narrative nature need neighborhood neighbourhood
network news night noise noon note notice notion number object objective obligation observation occasion offer office
operation opinion opponent opportunity option order organisation organization origin outcome outfit outline output
overview owner ownership pack package page pain pair panic part participant partner party passion past path patience
pattern payment peace people percent percentage perception performance period permission person personality perspective
phase phenomenon philosophy photo photography phrase pic picture piece pity place plan pleasure poem poet poetry point
policy politics pollution pop popularity population portfolio position possession possibility poverty power practice
praise preference presence presentation preview price pride principle priority privacy prize problem procedure process
product production profession professional profile profit program programme progress project promise proof property
proposal protection protest psychology publication publicity pulse punishment purpose quality quantity queen quest
question quote race range rank rate ratio reality reason reception recipe recognition recommendation recreation
reference reflection region regret relation relationship relative release relief religion remark reminder rental
replacement reply report reputation request requirement research resolution resource respect response responsibility
result revenue review revolution reward rhythm risk role romance routine rule rumor safety sake salary sale sample
satisfaction scale scandal scene scenery schedule scheme science scope score season secret section sector security
selection sense sentence sequence series service session setting shade shadow shame shape shift shipping shot sight
signal significance silence silhouette site situation size skill society solution song sorrow sort soul source space
species speech speed spirit sponsor spot staff stage standard standpoint start statement station statistics status step
stock story strategy strength stress structure struggle student stuff style subject success suggestion summary summer
summit surface surprise survey symbol sympathy symptom system talent target task tax teacher teaching team technique
technology teenager template tendency tension term terror text texture theme theory therapy thing thought threat
thumbnail tie time tip title tone tool top topic total tour tourist tradition tragedy transition treatment trend trial
trick trip trouble truth tune tutorial twilight unit universe use user usage vacation value variation variety version
victim victory video viewpoint village violence vision voice volume wallpaper war warning warranty wealth weather
website wedding week weekend weight welfare width wilderness will winner winter spring wisdom wit word world worth year
cast youth zone men women man woman boy girl lady ladies mens womens kids child children baby adult
acceptance accommodation accuracy adjustment admission advancement agony allowance ambition approval assessment
assignment assumption attendance authorization awareness barrier boundary burden capacity choice clarity coincidence
adaptation administration announcement appearance compassion competence complication continuity controversy conviction
declaration density distribution expectation explanation exploration identification imperative implementation
improvement inference intention mania nationalism occupation offense portion probability proximity rating reduction
regulation reinforcement renewal resistance sensation solicitation stabilization stealth
combat commitment compliance concentration conduct confusion consent consideration consultation contribution conversion
convenience cooperation coordination definition delegation demise designation destruction determination
discipline dispute distinction documentation donation duo duration eagerness efficiency elimination endeavor
enforcement enthusiasm estimation exposure exterior flexibility format formation frequency fulfillment gratification
guilt hardship hesitation impulse inclination inconvenience indicator initiative inquiry integration integrity
intensity intent interaction interval involvement lifetime likelihood loop maintenance mankind misery momentum motive
necessity nonsense nuisance obstacle occurrence onset opposition outbreak outlook patch pause peak persistence
potential precaution preparation prestige prevention prevalence promotion prospect provision quarter rage realm recovery
registration rehearsal removal representation requirement restriction retirement routine separation setback shortage
side simplicity sincerity span stability stance statistic submission substance substitute supervision suspense sympathy
temptation tolerance transformation trio urgency usage variable venture verdict warmth way whole willingness
"""

_BOILERPLATE = """
add advert alt amp apos app apk attachment avatar avi banner blog blogger bmp browse browser button buy caption cart
catalog catalogue click clip clipart closeup com collage copyright coupon css deal default demo details download drawing
ebay ebook eps etsy facebook favicon featured fig filename flickr font foto fotos footer format forum freebie frame gif
google gratis hd header homepage hover href html http https icon icons illus illustration image images img imgur inc
incl info inline instagram iso item jpeg jpg landing large leak linkedin listing login logo ltd mockup modal mp3 mp4
msrp nbsp net newsletter nofilter null offers online org original outlet pack page pcs pdf photo photobucket photograph
photographed photographer photography photooftheday photos photoshop pic pics picture pictures pin pinterest pixel png
popup portrait poster postcard pps ppt preview price print printable prints product products promo psd quot raquo laquo
hellip ndash mdash reddit rendering repost resolution retail reviews royalty rss sale scan screen screensaver screenshot
selfie seller seo shop shopping sku slideshow snapshot sold spec specification src sticker stock stockphoto store svg
tag tags thumb thumbnail thumbnails tiff trailer tumblr twitter undefined unnamed untitled url usd eur gbp vat vector
vectors video videos viewer viewers wallpaper wallpapers watermark webp website whatsapp widget wiki wikipedia wordpress
www xml youtube zip set kit lot print canvas art artwork fine sketch painting graphic graphics cover book album
encyclopedia dictionary grocery supermarket shelf recipes calories calorie nutrition ingredients delivery anonymous
kaufen bild bilder acheter livraison gratuite ligne comprar envio envío kopen verzending versand kostenloser stockowe
zdjecie zdjęcie sfondo laden ansicht caisse comparatif preis prix precio prezzo prijs pris
"""

# Forms of the verbs and nouns above that are also things a photo shows.
_THINGS = """
rose saw fan fans train trains trainer trainers fly flies dress dresses suit suits tie ties cart carts basket baskets
scale
scales wave waves swing swings switch switches sail sails record records stool creature creatures drawer drawers mixer
mixers
boxer boxers painter cooker printer cutter lighter hanger dryer poster posters village villages dancer dancers runner
flyer
rider driver toaster singer lift rocket
seal seals sealer bow bows loop loops groom grooms clutch clutches bumper bumpers booster boosters blender blenders
bloom blooms peeler peelers grinder grinders stripper strippers patch patches peak peaks triggers trigger
scratcher inspector inspectors inventor conqueror invader invaders weaver weavers snapper snappers dive dives diver
divers strip strips steering exposure tilt crawler jerky pound starving leap barrier barriers obstacle obstacles
monitor stretcher stretchers hopper hoppers slipper slippers grip grips glider gliders eraser erasers wiper wipers
squeezer squeezers bouncer bouncers diving weaving
"""

_DAYS_AND_MONTHS = """
monday tuesday wednesday thursday friday saturday sunday january february march april may june july august september
october november december jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun dezember juin
januar februar marzo enero
"""

_UNITS_AND_TIMES = """
mm cm km kg mg ml cl dl oz lb lbs inch inches ft feet foot yard yards mile miles meter meters metre metres gram grams
kilo kilogram liter liters litre litres gallon gallons pint quart watt watts volt volts amp amps kb mb gb tb mhz ghz dpi
mph kmh kilometer kilometers kilometre kilometres millimeter millimeters millimetre millimetres centimeter centimeters
centimetre centimetres acre acres hectare hectares lumen lumens lux ampere amperes kw kwh mah rpm psi hz decibel
decibels pound pounds ounce ounces ton tons tonne tonnes tsp tbsp km/h mins min hr hrs sec secs yr yrs year years day
days century centuries am pm o'clock
mph kmh second seconds minute minutes hour hours week weeks month months decade pair pairs pcs piece pieces qty xs xl
xxl xxxl cent cents euro euros percent north south east west
"""

_ABBREVIATIONS = """
approx apt assoc asst attn aug ave avg blvd bros cf chap circa cont corp dept dia diam dist ed eds est etc excl ext
feat ft gen gmbh govt hwy illus incl intl jr ltd llc mfg mfr min misc moq nib nr nwt nwot bnwt orig pkg pkt plc pp prev
pty qty rd ref reg rev rrp sec sm sp spec specs sq sr std ste tba tbc tbd tel temp trans univ ver vol vols wk wks wt
"""

# Besides those of English; without those that name a thing or a maker ("rosa", "naranja", "braun").
_COLOURS = """
noir noire noirs noires blanc blanche blancs blanches bleu bleue bleus bleues rouge rouges vert verte verts vertes
jaune jaunes gris grise grises
negro negra negros negras blanco blanca blancos blancas rojo roja rojos rojas azul azules verde verdes amarilla
morado morada
preto preta pretos pretas branco branca brancos brancas vermelho vermelha amarelo amarela cinza roxo roxa
nero nera neri bianco bianca bianchi rosso rossa blu giallo gialla grigio grigia azzurro azzurra
schwarz schwarze schwarzer schwarzes weiß weiss weiße weisse weißer weisser rot rote roter rotes blau blaue blauer
blaues grün grüne grüner grau graue grauer gelb gelbe braune brauner
zwart zwarte witte rood rode blauw blauwe groen groene geel gele grijs grijze
svart svarta vit röd röda blå blåa grön gröna grå gråa gul gula brun bruna sort sorte hvid hvide rød røde grøn
czarny czarna czarne biały biała białe czerwony czerwona czerwone niebieski niebieska zielony zielona żółty żółta szary
"""


def _words(text: str) -> frozenset[str]:
    # As normal forms have them: hyphens are blanks there, apostrophes stay.
    return frozenset(text.split())


def _verb_forms(verb: str) -> list[str]:
    """The regular forms of a verb: plan, plans, planned, planning, planner(s)."""
    if verb.endswith("e"):
        return [verb, verb + "s", verb + "d", verb[:-1] + "ing", verb + "r", verb + "rs"]
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return [verb, verb[:-1] + "ies", verb[:-1] + "ied", verb + "ing"]
    s = "es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else "s"
    doubled = verb + verb[-1] if verb[-1] not in "aeiouwxy" and verb[-2] in "aeiou" else verb
    return [verb, verb + s, verb + "ed", verb + "ing", doubled + "ed", doubled + "ing"]


def _noun_forms(noun: str) -> list[str]:
    if noun.endswith("y") and len(noun) > 2 and noun[-2] not in "aeiou":
        return [noun, noun[:-1] + "ies"]
    return [noun, noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")]


FUNCTION_WORDS = _words(_FUNCTION)
VERBS = frozenset(form for verb in _words(_VERBS) | _words(_VERBS_OF_THINGS) for form in _verb_forms(verb)) | _words(
    _IRREGULAR_FORMS
)
BEFORE_VERBS = _words(_BEFORE_VERBS)
DAYS_AND_MONTHS = _words(_DAYS_AND_MONTHS)
UNITS_AND_TIMES = _words(_UNITS_AND_TIMES) | DAYS_AND_MONTHS | _words("dozen hundred thousand million billion")
COMMON_WORDS = (
    frozenset(form for verb in _words(_VERBS) for form in _verb_forms(verb))
    | frozenset(form for noun in _words(_ABSTRACT) for form in _noun_forms(noun))
    | _words(_IRREGULAR_FORMS)
    | _words(_ADJECTIVES)
    | _words(_ADVERBS)
    | _words(_BOILERPLATE)
    | UNITS_AND_TIMES
    | _words(_ABBREVIATIONS)
    | _words(_COLOURS)
) - (FUNCTION_WORDS | _words(_THINGS))
