"""The training zone: traces and spend logs -> outcomes -> dataset -> fit -> evaluate -> package."""
