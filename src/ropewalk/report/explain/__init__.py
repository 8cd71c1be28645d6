"""A page that explains a model's rotary embedding and what scalings do to it: one HTML file with its own data.

    write_explanation("smollm2", 32_768, Path("page.html"))

`subject` reads the model and chooses the scalings; `rotations`, `attention`, `numbers` and `measured` compute the data
of one part of the page each; `captions` the values in the texts of `texts/`; `page` puts them together. The scripts in
`scripts/` draw what the data says. They compute no frequencies.
"""
