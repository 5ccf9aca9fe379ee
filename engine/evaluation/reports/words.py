"""The words of a report's page, English and Chinese; both are in the page, which shows one."""

from __future__ import annotations

from html import escape

# key -> (English, Chinese); {…} are filled in.
WORDS: dict[str, tuple[str, str]] = {
    "title": ("Evaluation of {names}", "{names} 的评测"),
    "other_language": ("中文", "English"),
    "versions": ("Versions", "版本"),
    "version": ("version", "版本"),
    "model": ("model", "模型"),
    "weights": ("weights", "权重"),
    "precision": ("precision", "精度"),
    "device": ("device", "设备"),
    "software": ("software", "软件版本"),
    "scores": ("Scores", "得分"),
    "scores_note": (
        "Percent, the first metric of each task; bars are 95% intervals. A dashed line is what guessing gives, a short stroke "
        "the median over files and prompts, a diamond GLM-130B as published, not measured here.",
        "百分数，每个任务的第一个指标；横线为 95% 置信区间。虚线为随机猜测的水平，短竖线为各文件与提示词的中位数，"
        "菱形为 GLM-130B 公布的数值（非此处测得）。",
    ),
    "perplexities": ("Perplexity", "困惑度"),
    "perplexities_note": (
        "By words, lower is better; 95% intervals over windows of text. Vocabularies differ, so only perplexities by words or "
        "bits a byte can be compared across models.",
        "按词计算，越低越好；置信区间按文本窗口计算。词表不同，只有按词的困惑度或每字节比特数可以在模型之间比较。",
    ),
    "compared": ("{second} compared with {first}", "{second} 与 {first} 的比较"),
    "compared_note": (
        "Second minus first, on the same rows drawn together (bootstrap, 95%). “No difference shown”: zero is in the interval, "
        "which does not prove that there is none.",
        "后者减前者，在相同的题目上成对重抽样（自助法，95%）。“未见差异”指区间包含零，并不证明没有差异。",
    ),
    "results": ("Results", "结果"),
    "results_note": (
        "Averages over files and prompts, weighted by rows; intervals are Wilson's for shares of right answers, else bootstrap "
        "over rows; a row asked with several prompts counts once. GLM-130B was measured by its authors with prompts of their own.",
        "按题目数加权的各文件与提示词平均值；答对比例用 Wilson 区间，其余按题目自助法；同一题用多个提示词只算一次。"
        "GLM-130B 的数值由其作者用自己的提示词测得。",
    ),
    "task": ("task", "任务"),
    "group": ("group", "分组"),
    "metric": ("metric", "指标"),
    "rows": ("rows", "题数"),
    "first_rows": ("(first {limit} of each file)", "（每个文件的前 {limit} 题）"),
    "published": ("GLM-130B: published, not measured", "GLM-130B：公布值，非测得"),
    "difference": ("difference", "差异"),
    "better_worse": ("better : worse", "变好 : 变差"),
    "other_rows": ("other rows", "题目不同"),
    "better": ("better", "变好"),
    "worse": ("worse", "变差"),
    "different": ("different", "有差异"),
    "none": ("no difference shown", "未见差异"),
    "details": ("By file and prompt", "按文件与提示词"),
    "settings": (
        "; up to {length} tokens; {replicas} replica(s); {time}; task file {file}, hash {hash}",
        "；最多 {length} 个词元；{replicas} 个副本；{time}；任务文件 {file}，哈希 {hash}",
    ),
    "mul": ("multiple choice", "选择题"),
    "gen": ("generation", "生成"),
    "lm": ("language modelling", "语言建模"),
    "file": ("file", "文件"),
    "cut": ("cut", "截断"),
    "cut_note": (
        "Cut: rows whose text lost its beginning because it was longer than the model's positions.",
        "截断：文本超过模型的位置数，开头被截去的题目数。",
    ),
    "time": ("time", "用时"),
    "sources": ("Sources of the published values", "公布值的出处"),
}


def word(key: str, **filled: str) -> str:
    """Both languages as HTML; `filled` is escaped."""
    shown = (escape(text.format(**filled)) for text in WORDS[key])
    return "".join(f'<span lang="{code}">{text}</span>' for code, text in zip(("en", "zh"), shown, strict=True))
