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
