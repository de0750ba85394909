"""Is one folder of images better than another?"""
