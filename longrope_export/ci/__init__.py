"""What pipelines show of a validation: JUnit XML, Markdown, GitHub's annotations and step summary.

validation.json's entries ──suites_of──► Suite, Finding ──► junit.xml_text, markdown.text, github.annotation_lines
"""
