"""Lists the words that names and off-topic sentences are made of."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """
    Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olga Paul Quinn Rosa Sam Tina Uma
    Victor Wendy Xavier Yara Zoe Alice Bob Carol Dave Eve Frank Gina Hugo Iris John Karl Lisa Max Nina Oscar
    Peter Ravi Sara Tom Ursula Vera Will Yuki Zara Ahmed Fatima Chen Mei Hiroshi Sofia Luca Giulia Pierre Chloe
    Ivan Olivia Liam Mia Lucas Amelia Ethan Ella James Mary Robert Linda Michael Sarah William Susan Thomas
    Jessica Daniel Karen Matthew Nancy Mark Betty George Helen Steven Sandra Kevin Donna Brian Laura Edward
    Emily Jason Amy Ryan Angela Eric Anja Jonas Lena Mehmet Aisha Omar Leila Priya Arjun Kenji Sakura Diego
    Carmen Pablo Ines Sven Ingrid Lars Freya
    """
)
SYLLABLES = _words(
    """
    an ar el en er in is on or ul ba be bi bo da de di do fa fe ga go ha he hi ja jo ka ke ki ko la le li lo lu
    ma me mi mo na ne ni no nu pa pe ra re ri ro ru sa se si so ta te ti to va vi wa wi ya yo za zo zu cha tha
    sha
    """
)
THINGS = _words(
    """
    cat dog horse bird fish car bus train house tree flower river mountain moon sky sun sea king queen teacher
    doctor book phone computer table chair apple banana bread cheese coffee tea water milk pizza soup city
    country street shop school office music song film game story poem joke news weather rain snow winter summer
    money bank job holiday airplane bicycle boat ship robot engine guitar piano football chess garden window
    door key lamp bed shirt shoe hat president capital language history science physics chemistry biology planet
    universe internet recipe cake dinner elephant lion tiger mouse rabbit monkey snake person man woman child
    baby people face hand eye hair nose program code function file list email letter number word sentence
    question password market price ticket hotel
    """
)
WORLD_PLACES = _words(
    """
    France Germany Japan China India Brazil Canada Spain Italy Egypt Paris London Berlin Tokyo Rome Madrid
    Russia America Europe Africa Mexico Sweden Norway Poland Turkey Kenya Peru Chile Greece Vienna Boston Texas
    """
)
# Words of no kind in particular, for sentences that mean nothing.
COMMON_WORDS = _words(
    """
    about above across after again against age air all almost alone along already always angry animal another
    any army arm art ask autumn away back bad bag ball battle beach beautiful because become before begin
    believe best better big blood body bone born both bottle box brave break breakfast bright bring brother
    build burn business busy buy calm camera candle car care carry castle catch cause chance change cheap choose
    church class clean clear climb clock close cloud club coat cold come cook cool copy corn cost cousin cover
    cry cut daily dance dark daughter day deep design die different dirty dream drive drop dry early earth east
    easy eat egg empty end enough enter even evening ever every exam fall family famous far farm fast father
    fear feed feel fever field fight fill film finger finish fire fix floor fly follow food foot forest forget
    fresh friend fruit full fun future gift girl give glass go gold good government grass great ground group
    grow guess happy hard hate health hear heart heavy help hero high hill history hold home honest hope
    hospital hot hour hungry hurt ice idea important inside island jacket join juice jump keep kill kind kitchen
    knee know lake land large last late laugh law lazy learn leave leg less lesson library life light listen
    live long lose loud love low luck lunch machine magazine market marry meal mean medicine meeting memory
    metal middle million mind minute mirror mistake moment month more most mother move mouth museum nature near
    neck need neighbor new next nice night noise north novel now ocean offer oil old onion open order other
    paint paper parent park part party pass path pay peace pen pencil pepper perfect phone plan plant plastic
    plate play please plenty pocket police poor popular post power pray present pretty problem promise proud
    pull push put quick quiet race radio read ready real reason rest rice rich ride ring road rock roof room
    rule run sad safe salt same sand save science seat secret sell serious seven shake share sharp short
    shoulder shout sick silver simple sister size skill sleep slow smart smell smile smoke snow soap soft
    soldier some son soon sorry sound south space speak special speed spend spoon sport spring stay steal stone
    stop storm story strange strong student study subway success sugar suit sweet swim system take talk tall
    taste tax team tell temple test than thick thin think thirsty tired today together tomorrow tool tooth touch
    tour tower town toy trade travel trip true trust truth try turn twelve twice ugly uncle under until use
    usual valley village virus visit voice wait wake walk wall war warm wash watch weak wear week weight west
    wet wheel wife wild win wind wine wing wish wonder wood work world worry write wrong year yesterday young
    """
)
