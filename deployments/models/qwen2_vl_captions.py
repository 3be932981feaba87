"""The words by which Qwen2-VL is asked for a caption, in the languages that it writes; it answers in the same one."""

from __future__ import annotations

from deployments.models.tasks import ENGLISH, Captions

CAPTIONS: Captions = {
    **ENGLISH,
    "ja": {
        "short": "この画像を短く説明してください。",
        "normal": "この画像を説明してください。",
        "long": "この画像を詳しく説明してください。",
    },
    "zh": {
        "short": "请简短地描述这张图片。",
        "normal": "请描述这张图片。",
        "long": "请详细描述这张图片。",
    },
    "de": {
        "short": "Beschreibe dieses Bild kurz.",
        "normal": "Beschreibe dieses Bild.",
        "long": "Beschreibe dieses Bild ausführlich.",
    },
    "fr": {
        "short": "Décris brièvement cette image.",
        "normal": "Décris cette image.",
        "long": "Décris cette image en détail.",
    },
    # Spanish and Portuguese are named: much of the one's words could be the other's.
    "es": {
        "short": "Describe esta imagen brevemente en español.",
        "normal": "Describe esta imagen en español.",
        "long": "Describe esta imagen en detalle en español.",
    },
    "ko": {
        "short": "이 이미지를 짧게 설명해 주세요.",
        "normal": "이 이미지를 설명해 주세요.",
        "long": "이 이미지를 자세히 설명해 주세요.",
    },
    "pt": {
        "short": "Descreva esta imagem brevemente em português.",
        "normal": "Descreva esta imagem em português.",
        "long": "Descreva esta imagem em detalhes em português.",
    },
    "it": {
        "short": "Descrivi brevemente questa immagine.",
        "normal": "Descrivi questa immagine.",
        "long": "Descrivi questa immagine in dettaglio.",
    },
}
