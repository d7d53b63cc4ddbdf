"""Every word of the page, in English and in Chinese, and the examples."""

TITLE = "GLM-130B & ERNIE 3.0"

EN = {
    "language": "English",
    "path": "",
    "subtitle": "Two bilingual models that read a text from both sides: fill its blanks, extract, classify.",
    "samples": (
        "**These are the shipped samples**: models of a megabyte or two, which know a few hundred sentences and "
        "made-up names. Stay near the examples; the released models open on the same page (`--glm`, `--uie`, "
        "`--classifier`)."
    ),
    "model": "Model",
    "parameters": "parameters",
    "examples": "Examples",
    "settings": "Settings",
    "python": "The same in Python",
    "working": "Reading",
    "memory": "There is not enough memory for this request. Shorten the text, or ask for fewer tokens or beams.",
    # Fill blanks.
    "fill_tab": "Fill blanks",
    "fill_text": "Text with blanks",
    "fill_help": "`[MASK]` a few words · `[sMASK]` a sentence · `[gMASK]` the rest; without any, the text goes on",
    "fill_button": "Fill",
    "fill_empty": "The filled text appears here, with what else the model might have written.",
    "method": "How",
    "greedy": "most probable",
    "beams": "beam search",
    "sampling": "sampling",
    "num_beams": "Beams",
    "max_new_tokens": "Tokens, at most",
    "temperature": "Temperature",
    "top_p": "Top p",
    "seed": "Seed",
    "candidates": "Alternatives",
    "alternatives": "Alternatives",
    "blank": "Blank",
    "chosen": "what stands in the text",
    "cut_off": "cut off at the limit of tokens",
    "nothing": "nothing",
    "else": "anything else",
    # Extract.
    "extract_tab": "Extract",
    "extract_text": "Text",
    "schema": "What to extract",
    "schema_help": "One name on each line; `company: founder, date` asks about each company found. Or nested JSON.",
    "text_language": "The names are in",
    "in_english": "English",
    "in_chinese": "Chinese",
    "threshold": "Probability above",
    "extract_button": "Extract",
    "extract_empty": "The text appears here with what was found in colours.",
    "label": "What",
    "text": "Answer",
    "place": "Place",
    "probability": "Probability",
    "nothing_found": "Nothing was found. Lower the probability, or name things as the model learned them.",
    # Classify.
    "classify_tab": "Classify",
    "classify_text": "Text",
    "classify_help_glm": "GLM-130B weighs the choices in the place of `[MASK]`; without one, behind the text.",
    "classify_help_utc": "UTC reads the text with all choices and says of each whether it holds.",
    "choices": "Choices",
    "choices_help": "One on each line.",
    "single_label": "Exactly one holds",
    "classify_button": "Classify",
    "classify_empty": "The choices appear here with their probabilities.",
    "holds": "holds",
    "none_holds": "None of them is likely enough to hold.",
}

ZH = {
    "language": "中文",
    "path": "zh",
    "subtitle": "两个从两边阅读文本的中英双语模型：填空、抽取、分类。",
    "samples": (
        "**这里打开的是随附的小样本**：一两兆字节的模型，只认识几百个句子和一些虚构的名字，请从示例出发。"
        "正式发布的模型也用同一页面打开（`--glm`、`--uie`、`--classifier`）。"
    ),
    "model": "模型",
    "parameters": "个参数",
    "examples": "示例",
    "settings": "设置",
    "python": "用 Python 来写",
    "working": "正在阅读",
    "memory": "内存不足，无法处理这个请求。请缩短文本，或减少词元数、束宽。",
    # Fill blanks.
    "fill_tab": "填空",
    "fill_text": "带空白的文本",
    "fill_help": "`[MASK]` 几个词 · `[sMASK]` 一句话 · `[gMASK]` 续写到底；不写空白则接着往下写",
    "fill_button": "填空",
    "fill_empty": "填好的文本会显示在这里，下面是模型还可能写出的内容。",
    "method": "方式",
    "greedy": "最可能",
    "beams": "束搜索",
    "sampling": "采样",
    "num_beams": "束宽",
    "max_new_tokens": "最多词元数",
    "temperature": "温度",
    "top_p": "Top p",
    "seed": "随机种子",
    "candidates": "备选数",
    "alternatives": "备选",
    "blank": "空白",
    "chosen": "文本中填的就是它",
    "cut_off": "达到词元上限而截断",
    "nothing": "（空）",
    "else": "其他",
    # Extract.
    "extract_tab": "抽取",
    "extract_text": "文本",
    "schema": "抽取什么",
    "schema_help": "每行一个名称；`公司: 创始人, 成立时间` 会对找到的每家公司追问。也可以写嵌套的 JSON。",
    "text_language": "名称的语言",
    "in_english": "英文",
    "in_chinese": "中文",
    "threshold": "概率高于",
    "extract_button": "抽取",
    "extract_empty": "文本会显示在这里，找到的内容用颜色标出。",
    "label": "名称",
    "text": "答案",
    "place": "位置",
    "probability": "概率",
    "nothing_found": "什么也没有找到。请降低概率，或换成模型学过的名称。",
    # Classify.
    "classify_tab": "分类",
    "classify_text": "文本",
    "classify_help_glm": "GLM-130B 把各选项放在 `[MASK]` 的位置上比较；没有 `[MASK]` 时放在文本后面。",
    "classify_help_utc": "UTC 把文本和全部选项一起读，逐个判断是否成立。",
    "choices": "选项",
    "choices_help": "每行一个。",
    "single_label": "只有一个成立",
    "classify_button": "分类",
    "classify_empty": "各选项及其概率会显示在这里。",
    "holds": "成立",
    "none_holds": "没有一个选项的概率足够高。",
}

WORDS = {"en": EN, "zh": ZH}

FILL_EXAMPLES = {
    "en": [
        ["The heart [MASK] through the whole [MASK]"],
        ["An octopus has [MASK] and blue blood."],
        ["Old Henrik keeps nine hives [gMASK]"],
        ["Bats find their way in the dark"],
    ],
    "zh": [
        ["二月是[MASK]里最短的[MASK]"],
        ["纸是[MASK]在两千年前发明的。"],
        ["蜜蜂跳舞是为了[gMASK]"],
        ["守灯塔的人把过往的船"],
    ],
}

_SCHEMA_EN = "person\ndate\nplace\ncompany: founder, founding date"
_SCHEMA_ZH = "人物\n时间\n地点\n公司: 创始人, 成立时间"
EXTRACT_EXAMPLES = {
    "en": [
        [
            "White Swan Books, founded by Rosa Baker in June 2022, has its main office in Rome. "
            "Oscar Turner likes to walk by the river.",
            _SCHEMA_EN,
            "en",
        ],
        ["Hugo Marsh met Victor Young in Vienna in 2001.", '["person", "place", "date"]', "en"],
    ],
    "zh": [
        ["上个月，上海下了一场大雪。谢秀兰是远山电子公司的创始人，公司去年秋天在杭州成立。", _SCHEMA_ZH, "zh"],
        ["青云科技公司成立于上个月，总部设在北京，创始人是梁春生。", '{"公司": ["创始人", "成立时间"]}', "zh"],
    ],
}

CLASSIFY_EXAMPLES = {
    "en": [
        ["Captain Ines steers the [MASK]", "ferry.\nbicycle.\ntrain."],
        ["A group of [MASK] is called a pack.", "wolves\nbees\nants\nwhales"],
        ["Half of a dozen is", "six.\nten.\ntwelve."],
    ],
    "zh": [
        ["[MASK]是自然界里最硬的东西。", "金刚石\n金\n铁"],
        ["十乘以十等于[MASK]", "一百。\n十。\n六。"],
        ["指南针的针尖总是指向", "北方。\n南方。\n东方。"],
    ],
}
