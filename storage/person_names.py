"""Where a text probably names a person: rules for what introduces a name in English and Chinese, nothing learnt.

`spans(text)` gives (start, end) of each likely name. It is a proposal for a person who decides; it rather proposes a
word too many than misses how somebody introduces themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]

_CAPITAL = r"[A-Z\u00c0-\u00de][\w'’-]{0,30}"
_PARTICLE = r"(?:van|von|der|den|de|del|della|da|dos|di|la|le|bin|ibn|al|ter|zu)"
_FULL = rf"{_CAPITAL}(?:[ \t](?:{_PARTICLE}[ \t]){{0,2}}{_CAPITAL}){{0,3}}"

# Behind this the next word is a name even in small letters.
_CALLED = re.compile(
    rf"(?i:\bmy\s(?:full\s|first\s|last\s|real\s)?name(?:\sis|['’]s|\s?[:=])\s{{0,3}})"
    rf"({_FULL}|[^\W\d_\u3400-\u9fff][\w'’-]{{1,30}})"
)
# Behind these only a capitalised word is one.
_TITLE = r"(?:Mr|Mrs|Ms|Miss|Dr|Prof|Mister|Professor|Doctor)\.?\s"
_INTRODUCED = re.compile(
    rf"(?:\b(?i:i\sam(?:\scalled)?|i['’]m|call\sme|dear|regards,|sincerely,|wishes,|yours,|cheers,|name:|signed:)\s{{1,3}}"
    rf"(?:{_TITLE})?|\b{_TITLE})({_FULL})"
)
_SPEAKING = re.compile(rf"\b(?i:this\sis)\s({_FULL})(?=,?\s(?:speaking|calling|here|from)\b)")
# Latin names in a Chinese sentence.
_MIXED = re.compile(rf"(?:我叫|我是|名字是|名叫|姓名[:：]?|我的名字叫|叫我)\s{{0,2}}({_FULL})")

_NOT_NAMES = frozenset(
    word
    for line in (
        "a an the not no yes sorry sure glad happy afraid here there very so just also going trying looking writing",
        "working from in at on and but or i you he she it we they this that sir madam madame all team friend friends",
        "customer reader god mom mum dad everyone everybody hiring manager diary my your his her our their what who",
        "how why when where english chinese american british french german italian spanish japanese korean indian",
        "russian european african asian monday tuesday wednesday thursday friday saturday sunday january february",
        "march april june july august september october november december mr mrs ms miss dr prof professor doctor",
    )
    for word in line.split()
)

# The hundred and some commonest family names (two characters first), which nearly everybody has.
_COMPOUND = "欧阳|司马|上官|诸葛|东方|皇甫|尉迟|公孙|慕容|令狐|长孙|宇文|司徒|夏侯|南宫|端木"
_FAMILY = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆"
    "汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤常温康施文牛樊葛邢安齐易"
    "乔伍庞颜倪庄聂章鲁岳翟殷詹申欧耿关兰焦俞左柳甘祝包宁尚符舒阮柯纪梅童凌毕单季裴霍涂成苗谷盛曲翁冉骆蓝路游辛靳"
    "張劉陳楊黃趙吳孫馬羅鄭謝許韓馮鄧蕭葉蘇魏呂盧鍾譚陸賈韋鄒賀顧龔萬錢嚴湯"
)
_HAN = "[\u4e00-\u9fff]"
_CHINESE = rf"(?:(?:{_COMPOUND}){_HAN}{{1,2}}|[{_FAMILY}]{_HAN}{{1,2}})"
# Who says "I am", "this is" or "he is called" means a name only with a family name behind it ...
_CHINESE_INTRODUCED = re.compile(
    rf"(?:我是|这是|本人|我叫|叫做|叫作|名叫|名字是|名字叫|姓名(?:[:：是为\s])?|叫我)\s{{0,2}}({_CHINESE})"
)
# ... or, for what asks for nothing else, any short word that ends there, or a nickname.
_CHINESE_CALLED = re.compile(
    rf"(?:我叫|名字是|名字叫|姓名[:：是为])\s{{0,2}}([小阿老]{_HAN}{{1,2}}|{_HAN}{{2,4}}(?=[，。！？；、,.!?;\s]|$))"
)
_CHINESE_ADDRESSED = re.compile(
    rf"({_CHINESE}(?=先生|女士|小姐|老师|教授|医生|经理|律师|博士)|[{_FAMILY}](?:先生|女士|小姐|老师|教授|医生|经理|律师|博士))"
)
# What doesn't end a name but begins the words behind it: never part of one, or only of one that ends there.
_NEVER_LAST = frozenset("的是在来也很了都被把给吗呢吧就")
_SELDOM_LAST = frozenset("今住正年和与跟及以能会可用不已想要从去有")
_NO_FIRST = frozenset("他她它你您我们这那不没")
_CHINESE_WORDS = tuple(
    word
    for line in (
        "高兴 安全 方便 白色 黄色 金色 常常 成功 成都 程序 文学 文员 文科 理科",
        "武汉 武术 安徽 江苏 江西 方法 方案 关于 关键 向来 任何 万一 包括 包含",
        "毕业 毕竟 单身 单独 单位 单亲 温柔 安静 白人 石头 马上 马来 金牛 金融",
        "金属 路人 路过 路由 游客 游戏 曾经 高中 高级 田园 康复 成年 成员 于是",
        "何时 何人 余下 时候 左右 左撇子 尚未 宁愿 宁可 莫非 史上 申请 向导",
        "计算机 牛人 房东 学生 老师 机器人 助手 语言模型 中国 英国 美国 法国 日本",
        "大家 什么 黎明 龙虾 熊猫",
    )
    for word in line.split()
)


def spans(text: str) -> Iterator[Span]:
    """(start, end) of each likely name of a person; some may overlap."""
    for pattern in (_CALLED, _INTRODUCED, _SPEAKING, _MIXED):
        for found in pattern.finditer(text):
            length = _latin(found[1])
            if length:
                yield found.start(1), found.start(1) + length
    for pattern in (_CHINESE_INTRODUCED, _CHINESE_ADDRESSED, _CHINESE_CALLED):
        for found in pattern.finditer(text):
            words = found[1]
            if words[0] in _NO_FIRST or words.startswith(_CHINESE_WORDS):
                continue
            if pattern is _CHINESE_INTRODUCED:
                words = _shortened(words, followed=text[found.end() : found.end() + 1])
            if len(words) > 1:
                yield found.start(1), found.start(1) + len(words)


def _latin(words: str) -> int:
    """How long the name at the beginning of `words` is: up to "'s" and to words that are none; 0 if there is none."""
    length = 0
    for word in re.finditer(r"\S+", words):
        bare = re.sub(r"['’](?:s|m|re|ll|d|ve)?$", "", word[0])
        acronym = len(bare) > 1 and bare.isupper()  # AI, GLM
        if bare.lower() in _NOT_NAMES or acronym or not bare:
            break
        length = word.start() + len(bare)
        if bare != word[0]:
            break
    return length if length > 1 else 0


def _shortened(words: str, followed: str) -> str:
    """A Chinese name without the first character of what stands behind it; "" if what is left is no name."""
    if words[1] in "的是了":
        return ""
    goes_on = "\u4e00" <= followed <= "\u9fff"
    while len(words) > 1 and (words[-1] in _NEVER_LAST or (goes_on and len(words) > 2 and words[-1] in _SELDOM_LAST)):
        words = words[:-1]
    return words if len(words) > 1 else ""
