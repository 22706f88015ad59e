"""Songs before tokens: corpora, stems, clips, separation."""
