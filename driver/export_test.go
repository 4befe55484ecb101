package driver

// Cut shortens a text to a number of bytes.
func Cut(text string, most int) string { return cut(text, most) }
